"""Calibration of key and value caches: the verbs. Each reads as its own recipe."""

from __future__ import annotations

import logging
import os

from torch import nn

from .capability import kind_of
from .config.kv_cache import KVCacheConfig
from .config.simplified_kv import load_simplified_kv
from .files import check_distinct, check_file_name, check_writable
from .graph.facts import ModelFacts
from .graph.linears import linear_facts
from .layers.base import check_not_processed
from .steps import check_types, copy_model
from .transforms.insert import keep_record
from .transforms.kv_cache import KVRecordKeeper, insert_kv_calibration

logger = logging.getLogger(__name__)


def create_quant_cali_config(
    config_file: str,
    model: nn.Module,
    quant_layers: dict[str, list[str]] | None = None,
    config_defination: str | None = None,
) -> None:
    """Writes as JSON how the key and value caches that Linear layers fill are calibrated.

    Args:
        config_file: the JSON file to write; an existing one is replaced with a warning.
        model: the trained float model.
        quant_layers: `{"kv_cache_quant_layers": [names of Linear layers]}`.
        config_defination: a simplified configuration (protobuf text, or a file that ends in .yaml,
            .yml or .json, of the same structure) to use in its place.

    Raises TypeError for an argument of a wrong type, an unknown key of `quant_layers`, and where
    both it and `config_defination` are None; RuntimeError where no layer is named and for a model
    that was processed already; ValueError for a name that is no Linear of the model and for a
    wrong value (ParseError of google.protobuf.text_format for protobuf text that does not parse);
    OSError for a file that cannot be read or written.

    >>> import tempfile
    >>> model = nn.ModuleDict({"k_proj": nn.Linear(8, 4)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/config.json"
    ...     create_quant_cali_config(file, model, {"kv_cache_quant_layers": ["k_proj"]})
    ...     os.listdir(folder)
    ['config.json']
    """
    check_types(
        "create_quant_cali_config",
        model=(model, nn.Module),
        config_defination=(config_defination, str, None),
    )
    check_file_name(config_file, "config_file", empty=IsADirectoryError)
    check_writable(config_file)
    facts = _facts(model)
    if config_defination is None:
        config = KVCacheConfig.generate(facts, quant_layers)
    else:
        if quant_layers is not None:
            logger.warning(
                "quant_layers is not used: config_defination %s decides", config_defination
            )
        check_distinct(config_file=config_file, config_defination=config_defination)
        config = load_simplified_kv(config_defination, facts)
    config.save(config_file)


def create_quant_cali_model(config_file: str, record_file: str, model: nn.Module) -> nn.Module:
    """A copy of `model` that finds the factors of its key and value caches as it runs.

    What the caches hold is what their Linear layers return, so the output of each layer of the
    configuration is observed, and returned as it is. Once every layer has seen `batch_num` calls
    (calls, not batches: a layer that runs twice in a forward counts two), the record file has the
    factors of all of them; before that it tells how far each is. Calls after that are ignored.

    Args:
        config_file: the configuration from `create_quant_cali_config`.
        record_file: the file of factors to write; an existing one is replaced with a warning.
        model: the trained float model; it is not changed.

    Raises TypeError, ValueError or RuntimeError for a configuration that does not fit the model,
    RuntimeError for a model that cannot be copied or was processed already, OSError for a file
    that cannot be read or written. The returned model raises TypeError for outputs that are not
    float32, float16 or bfloat16, and RuntimeError for NaN or infinity in them and, per channel, for
    a number of channels that changes; all name the layer.

    >>> import tempfile, torch
    >>> from amct_pytorch.records import Records
    >>> model = nn.ModuleDict({"k_proj": nn.Linear(8, 4)})
    >>> folder = tempfile.TemporaryDirectory()
    >>> config, record = f"{folder.name}/config.json", f"{folder.name}/record.txt"
    >>> create_quant_cali_config(config, model, {"kv_cache_quant_layers": ["k_proj"]})
    >>> observing = create_quant_cali_model(config, record, model)
    >>> keys = observing["k_proj"](torch.randn(2, 8))
    >>> list(Records.load(record).kv_cache)
    ['k_proj']
    >>> folder.cleanup()
    """
    check_types("create_quant_cali_model", model=(model, nn.Module))
    check_file_name(config_file, "config_file", empty=IsADirectoryError)
    check_file_name(record_file, "record_file")
    check_distinct(config_file=config_file, record_file=record_file)
    if not os.path.exists(config_file):
        raise FileNotFoundError(
            f"config_file {config_file!r} is missing; write it with create_quant_cali_config"
        )
    check_writable(record_file)
    config = KVCacheConfig.load(config_file, _facts(model))
    model = copy_model(model)
    if model.training:
        logger.warning(
            "the model is in training mode: calibration will see dropout and the statistics of "
            "batches, which inference does not have; call model.eval() first"
        )
    calibration = insert_kv_calibration(model, config)
    keeper = KVRecordKeeper(os.path.abspath(record_file), {}, calibration)
    keep_record(model, keeper)
    keeper.records().save(record_file)
    return model


def _facts(model: nn.Module) -> ModelFacts:
    check_not_processed(model)
    if kind_of(model) is not None:
        raise RuntimeError(
            f"the model itself is a {type(model).__name__} layer, which has no name to configure; "
            "wrap it: torch.nn.Sequential(model)"
        )
    return linear_facts(model)
