"""Post-training quantization: the verbs. Each reads as its own recipe."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from torch import nn

from .config.ptq import QuantConfig
from .config.simplified import load_simplified
from .export.graphs import check_not_exported, graph_files, model_paths
from .export.model_file import load_model, model_files
from .files import check_distinct, check_file_name, check_save_path, check_writable, write_files
from .graph.options import DynamicAxes, ExportOptions
from .records import Records
from .steps import (
    capture_model,
    check_types,
    collector_paused,
    copy_model,
    follow_adaround,
    list_float_layers,
    modified_graph,
    outside_inference_mode,
    prepare,
    start_calibration,
)
from .transforms.dmq import load_balance
from .transforms.insert import Files, RecordKeeper, keep_record

logger = logging.getLogger(__name__)


@collector_paused()
def create_quant_config(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    skip_layers: list[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
    *,
    opset_version: int = 13,
) -> None:
    """Finds the layers of `model` that can be quantized and writes their configuration as JSON.

    Args:
        config_file: the JSON file to write; an existing one is replaced with a warning.
        model: the trained float model.
        input_data: a tensor, or a tuple of the model's arguments (keyword arguments as a dict at
            its end), to trace the model with.
        skip_layers: names of layers to leave float.
        batch_num: number of batches that calibration will see, > 0.
        activation_offset: whether activations are quantized with an offset.
        config_defination: a simplified configuration (protobuf text, or a file that ends in .yaml,
            .yml or .json, of the same structure); `skip_layers`, `batch_num`
            and `activation_offset` are then taken from it.
        opset_version: the ONNX opset to trace with, 11 to 23.

    Raises TypeError or ValueError for arguments that do not fit and for a wrong simplified
    configuration (ParseError of google.protobuf.text_format for protobuf text that does not parse),
    RuntimeError for a model that cannot be captured or was processed already, OSError for a file
    that cannot be read or written.

    Example::

        amct.create_quant_config("config.json", model, torch.randn(1, 3, 224, 224), batch_num=4)
    """
    check_types(
        "create_quant_config",
        model=(model, nn.Module),
        skip_layers=(skip_layers, list, None),
        batch_num=(batch_num, int),
        activation_offset=(activation_offset, bool),
        config_defination=(config_defination, str, None),
    )
    check_file_name(config_file, "config_file", empty=IsADirectoryError)
    if config_defination is not None:
        check_distinct(config_file=config_file, config_defination=config_defination)
    check_writable(config_file)
    options = ExportOptions(opset_version=opset_version)
    _, facts = capture_model(copy_model(model, required=False), input_data, options)
    if config_defination is None:
        config = QuantConfig.generate(facts, skip_layers, batch_num, activation_offset)
    else:
        if skip_layers:
            logger.warning(
                "skip_layers is not used: config_defination %s decides", config_defination
            )
        config = load_simplified(config_defination, facts)
    list_float_layers(facts)
    config.save(config_file)


@outside_inference_mode()
@collector_paused()
def quantize_model(
    config_file: str,
    modfied_onnx_file: str,
    record_file: str,
    model: nn.Module,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    *,
    opset_version: int = 13,
    progress: bool = True,
) -> nn.Module:
    """Quantizes the weights and returns a copy of `model` that calibrates its activations.

    Run the returned model on `batch_num` batches; with the last one the record file is complete
    and `save_model` can follow. Its outputs are those of the model with quantized weights.
    With AdaRound layers (`wts_algo` `ada_quantize`) it keeps copies of the batches; the last call
    learns the roundings on them, which can take long, and writes `modfied_onnx_file` again.

    Args:
        config_file: the configuration from `create_quant_config`.
        modfied_onnx_file: the ONNX file to write, in float, for `save_model`.
        record_file: the file of factors to write; with `dmq_balancer_param` in the configuration
            it has the balance factors of `quantize_preprocess`, which are kept.
        model: the trained float model; it is not changed.
        input_data: as for `create_quant_config`.
        input_names, output_names: names of the graph's inputs and outputs.
        dynamic_axes: per name {axis: name of the dimension} or a list of axes.
        opset_version: opset of all ONNX files, 11 to 23.
        progress: a bar on stderr while roundings are learnt, if that is a terminal.

    The ONNX files of a bfloat16 model compute in float32, which the converter and ONNX Runtime
    have; those of a float16 model keep its type.

    Raises TypeError for weights or activations that are not float32, float16 or bfloat16,
    RuntimeError for NaN or infinity in them; both name the layer. Raises RuntimeError if balance
    factors are missing, with the layers and batches that `quantize_preprocess` has seen. See
    `create_quant_config` for the others.

    Example::

        calibrated = amct.quantize_model(
            "config.json", "modified.onnx", "record.txt", model, batches[0]
        )
        for batch in batches:  # batch_num of them
            calibrated(batch)
        amct.save_model("modified.onnx", "record.txt", "results/model")
    """
    check_types(
        "quantize_model",
        model=(model, nn.Module),
        input_names=(input_names, list, None),
        output_names=(output_names, list, None),
        dynamic_axes=(dynamic_axes, dict, None),
        progress=(progress, bool),
    )
    check_file_name(config_file, "config_file", empty=IsADirectoryError)
    check_file_name(modfied_onnx_file, "modfied_onnx_file")
    check_file_name(record_file, "record_file")
    check_distinct(
        config_file=config_file, modfied_onnx_file=modfied_onnx_file, record_file=record_file
    )
    options = ExportOptions(input_names, output_names, dynamic_axes, opset_version)
    if not os.path.exists(config_file):
        raise FileNotFoundError(
            f"config_file {config_file!r} is missing; write it with create_quant_config"
        )
    for path in (modfied_onnx_file, record_file):
        check_writable(path)

    model = copy_model(model)
    if model.training:
        logger.warning(
            "the model is in training mode: calibration will see dropout and the statistics of "
            "batches, which the exported model does not have; call model.eval() first"
        )
    prepared = prepare(config_file, model, input_data, options)
    balance = load_balance(record_file, prepared.facts, prepared.layers)
    weights, calibration = start_calibration(model, prepared, prepared.layers, balance)
    modified = modified_graph(prepared, model, prepared.layers, balance)
    keeper = RecordKeeper(os.path.abspath(record_file), weights, calibration)
    if calibration.float_weights:
        path = os.path.abspath(modfied_onnx_file)

        def files_of(calibrated: nn.Module) -> Files:
            layers = prepared.layers
            return model_files(modified_graph(prepared, calibrated, layers, balance), path)

        def rounded(calibrated: nn.Module) -> None:
            keeper.with_record = partial(files_of, calibrated)

        follow_adaround(model, prepared, weights, calibration, rounded, progress)
    keep_record(model, keeper)
    contents = model_files(modified, modfied_onnx_file)
    files = {**contents, record_file: keeper.records().dumps()}
    write_files(files, warn_replaced=not balance)  # the balance factors of a record are kept
    return model


@collector_paused()
def save_model(modfied_onnx_file: str, record_file: str, save_path: str) -> None:
    """Writes the deploy and the fake_quant ONNX model of a calibrated model.

    Args:
        modfied_onnx_file: the ONNX file from `quantize_model`.
        record_file: the record, complete after calibration.
        save_path: `folder/prefix`; writes `<prefix>_deploy_model.onnx` and
            `<prefix>_fake_quant_model.onnx` (no prefix: `deploy_model.onnx`, ...).

    Raises ValueError for a bad or missing model file, RuntimeError for a record that does not
    parse, does not fit the model or belongs to an unfinished calibration (with the layer and the
    batches it has seen and needs), and OSError for a folder that cannot be written.
    `quantize_model` has an example.
    """
    check_file_name(modfied_onnx_file, "modfied_onnx_file")
    check_file_name(record_file, "record_file")
    check_save_path(save_path)
    if not os.path.isfile(modfied_onnx_file):
        raise ValueError(
            f"modfied_onnx_file {modfied_onnx_file!r} is missing; it is written by quantize_model"
        )
    paths = model_paths(save_path)
    check_distinct(modfied_onnx_file=modfied_onnx_file, record_file=record_file, **paths)
    for path in paths.values():
        check_writable(path)
    records = Records.load(record_file)
    modified = load_model(modfied_onnx_file)
    check_not_exported(modified, modfied_onnx_file)
    write_files(graph_files(modified, records, paths))
