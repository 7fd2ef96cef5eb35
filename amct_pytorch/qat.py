"""Quantization-aware training: the verbs. Each reads as its own recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import load_checkpoint, without_wrappers
from .config.retrain import RetrainConfig
from .config.simplified_retrain import load_simplified_retrain
from .export.graphs import graph_files, model_paths
from .files import check_distinct, check_file_name, check_save_path, check_writable, write_files
from .graph.facts import ModelFacts
from .graph.options import DynamicAxes, ExportOptions
from .layers.retrain import Retrained
from .records import Records
from .steps import capture_model, check_types, copy_model, list_float_layers, name_layers
from .transforms.retrain import (
    insert_quantizers,
    progress_of,
    remove_quantizers,
    retrain_options,
    retrained_layers,
    shift_progress_of,
)


def create_quant_retrain_config(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    config_defination: str | None = None,
    *,
    opset_version: int = 13,
) -> None:
    """Finds the layers of `model` that can be trained quantized and writes their configuration.

    Args:
        config_file: the JSON file to write; an existing one is replaced with a warning.
        model: the trained float model.
        input_data: a tensor, or a tuple of the model's arguments (keyword arguments as a dict at
            its end), to trace the model with.
        config_defination: a simplified configuration (protobuf text, or a file that ends in .yaml,
            .yml or .json, of the same structure) to make it from.
        opset_version: the ONNX opset to trace with, 11 to 23.

    Raises TypeError or ValueError for arguments that do not fit, for a model without a layer that
    can be quantized and for a wrong simplified configuration (ParseError of
    google.protobuf.text_format for protobuf text that does not parse), RuntimeError for a model
    that cannot be captured or was processed already, OSError for a file that cannot be read or
    written.

    Example::

        amct.create_quant_retrain_config("retrain.json", model, torch.randn(1, 3, 224, 224))
    """
    check_types(
        "create_quant_retrain_config",
        model=(model, nn.Module),
        config_defination=(config_defination, str, None),
    )
    check_file_name(config_file, "config_file")
    if config_defination is not None:
        check_distinct(config_file=config_file, config_defination=config_defination)
    check_writable(config_file)
    _check_not_wrapped(model)
    options = ExportOptions(opset_version=opset_version)
    _, facts = capture_model(copy_model(model, required=False), input_data, options)
    if config_defination is None:
        config = RetrainConfig.generate(facts)
    else:
        config = load_simplified_retrain(config_defination, facts)
    list_float_layers(facts)
    config.save(config_file)


def create_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    input_data: Any,
    *,
    opset_version: int = 13,
) -> nn.Module:
    """Returns a copy of `model` whose layers learn to be quantized.

    Train the returned model as the float one, with about a quarter to a third of the epochs and a
    hundredth of the learning rate; make the optimizer from its parameters. The first `batch_num`
    forwards find the clip ranges to start from. In evaluation mode it computes what
    `save_quant_retrain_model` would export. For several processes: create first, then wrap in
    DistributedDataParallel.

    Args:
        config_file: the configuration from `create_quant_retrain_config`.
        model: the trained float model; it is not changed.
        record_file: the file of factors, emptied now and written by `save_quant_retrain_model`.
        input_data: as for `create_quant_retrain_config`.
        opset_version: the ONNX opset to trace with, 11 to 23.

    Raises RuntimeError for a model that was processed before, is wrapped (DistributedDataParallel,
    torch.compile, AveragedModel) or cannot be copied, TypeError for weights that are neither
    float32 nor float16, and what reading the configuration raises.

    Example::

        model = amct.create_quant_retrain_model("retrain.json", model, "record.txt", batch)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    """
    check_types("create_quant_retrain_model", model=(model, nn.Module))
    check_file_name(config_file, "config_file")
    check_file_name(record_file, "record_file")
    check_distinct(config_file=config_file, record_file=record_file)
    options = ExportOptions(opset_version=opset_version)
    _check_config_exists(config_file)
    check_writable(record_file)
    _check_not_wrapped(model)
    model = copy_model(model)
    _, facts = capture_model(model, input_data, options)
    insert_quantizers(model, facts, RetrainConfig.load(config_file, facts))
    write_files({record_file: ""})
    return model


def restore_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    input_data: Any,
    pth_file: str,
    state_dict_name: str | None = None,
    *,
    opset_version: int = 13,
) -> nn.Module:
    """`create_quant_retrain_model`, then the state of a training that was interrupted.

    The restored model goes on exactly where the saved one was: its evaluation has the same bits.

    Args:
        config_file, model, record_file, input_data: as for `create_quant_retrain_model`; `model`
            is the float model.
        pth_file: what `torch.save(model.state_dict(), pth_file)` wrote.
        state_dict_name: the key of the state dict where the file holds a dictionary around it.

    Names that begin with `module.` or `_orig_mod.` (DistributedDataParallel, torch.compile) are
    accepted, and so are checkpoints of the Ascend toolkit (layers/checkpoint_names.py).
    Raises KeyError for a missing `state_dict_name`, RuntimeError for names or shapes that do not
    fit the model, FileNotFoundError for a missing file.

    Example::

        torch.save({"model": model.state_dict()}, "checkpoint.pth")
        model = amct.restore_quant_retrain_model(
            "retrain.json", float_model, "record.txt", batch, "checkpoint.pth", "model"
        )
    """
    check_types(
        "restore_quant_retrain_model",
        pth_file=(pth_file, str),
        state_dict_name=(state_dict_name, str, None),
    )
    state = load_checkpoint(pth_file, state_dict_name)
    retrained = create_quant_retrain_model(
        config_file, model, record_file, input_data, opset_version=opset_version
    )
    state = without_wrappers(state, retrained.state_dict().keys())
    try:
        retrained.load_state_dict(state)
    except RuntimeError as error:
        hint = "it fits another model or configuration"
        if state.keys() == model.state_dict().keys():
            hint = "it is that of the float model: load it before create_quant_retrain_model"
        raise RuntimeError(f"{pth_file}: {hint}: {error}") from error
    progress_of(retrained_layers(retrained))  # tells the layers that need no more batches
    return retrained


def save_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    save_path: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    *,
    opset_version: int = 13,
) -> None:
    """Writes the record, the deploy and the fake_quant ONNX model of a model as it is now.

    Both models are those of evaluation mode, whatever mode `model` is in; `model` is not changed
    and can be trained on. BatchNorms are folded.

    Args:
        config_file: the configuration that `model` was created with.
        model: what `create_quant_retrain_model` or `restore_quant_retrain_model` returned, after
            training; also inside DistributedDataParallel, torch.compile or AveragedModel.
        record_file: the record to write.
        save_path: `folder/prefix`; writes `<prefix>_deploy_model.onnx` and
            `<prefix>_fake_quant_model.onnx` (no prefix: `deploy_model.onnx`, ...).
        input_data: as for `create_quant_retrain_config`.
        input_names, output_names: names of the graph's inputs and outputs.
        dynamic_axes: per name {axis: name of the dimension} or a list of axes.
        opset_version: opset of the ONNX files, 11 to 23.

    Raises RuntimeError for a model without trained layers, layers that have seen fewer batches
    than `batch_num` (named, with both numbers), a configuration other than the model's, and
    weights that are not finite; OSError for a folder that cannot be written.

    Example::

        amct.save_quant_retrain_model("retrain.json", model, "record.txt", "results/net", batch)
    """
    check_types(
        "save_quant_retrain_model",
        model=(model, nn.Module),
        input_names=(input_names, list, None),
        output_names=(output_names, list, None),
        dynamic_axes=(dynamic_axes, dict, None),
    )
    check_file_name(config_file, "config_file")
    check_file_name(record_file, "record_file")
    check_save_path(save_path)
    paths = model_paths(save_path)
    check_distinct(config_file=config_file, record_file=record_file, **paths)
    options = ExportOptions(input_names, output_names, dynamic_axes, opset_version)
    _check_config_exists(config_file)
    for path in (record_file, *paths.values()):
        check_writable(path)
    layers = retrained_layers(model)
    _check_trained(layers)

    exported = copy_model(unwrapped(model)).eval()
    records = Records(remove_quantizers(exported), source=record_file)
    captured, facts = capture_model(exported, input_data, options)
    _check_config(config_file, RetrainConfig.load(config_file, facts), facts, layers)
    name_layers(captured, facts)
    files = graph_files(captured.model, records, paths)
    write_files({**files, record_file: records.dumps()})


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, torch.compile and AveragedModel."""
    while attribute := _holder(model):
        model = getattr(model, attribute)
    return model


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def _holder(model: nn.Module) -> str | None:
    """The attribute in which a wrapper holds its model; None: `model` is no wrapper."""
    if isinstance(model, _WRAPPERS):
        return "module"
    return "_orig_mod" if hasattr(model, "_orig_mod") else None


def _check_not_wrapped(model: nn.Module) -> None:
    if attribute := _holder(model):
        raise RuntimeError(
            f"the model is wrapped in {type(model).__name__}: create first and wrap second, pass "
            f"model.{attribute}"
        )


def _check_config_exists(config_file: str) -> None:
    if not os.path.exists(config_file):
        raise FileNotFoundError(
            f"config_file {config_file!r} is missing; write it with create_quant_retrain_config"
        )


def _check_trained(layers: Mapping[str, Retrained]) -> None:
    if not layers:
        raise RuntimeError(
            "the model has no layer that learns to be quantized; pass what "
            "create_quant_retrain_model returned"
        )
    if unfinished := progress_of(layers):
        raise RuntimeError(
            f"there are no quantization factors yet: {_counted(unfinished)} batches (batch_num); "
            "run the missing forwards, then save"
        )
    if unfinished := shift_progress_of(layers):
        raise RuntimeError(
            f"the shift factor N is not found yet: {_counted(unfinished)} evaluation batches since "
            "the last training step; run them in evaluation mode, then save"
        )


def _counted(progress: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f'"{name}" has seen {seen} of {n}' for name, (seen, n) in progress.items())


def _check_config(
    source: str, config: RetrainConfig, facts: ModelFacts, layers: Mapping[str, Retrained]
) -> None:
    """Raises RuntimeError unless `config` is the one that the model was created with."""
    for name in sorted(config.enabled.keys() ^ layers.keys()):
        here, there = ("is", "is not") if name in config.enabled else ("is not", "is")
        raise RuntimeError(
            f"{source}: {name}: {here} enabled here and {there} in the model; save with the "
            "configuration that the model was created with"
        )
    for name, layer in layers.items():
        asked = asdict(retrain_options(config, config.layers[name], facts.layers[name]))
        found = asdict(layer.options)
        for key, value in asked.items():
            if value != found[key]:
                raise RuntimeError(
                    f"{source}: {name}: asks for {key} {_unlike(value, found[key])}, the model has "
                    f"{_unlike(found[key], value)}; save with the configuration that the model was "
                    "created with"
                )


def _unlike(one: Any, other: Any) -> Any:
    """What of a value is not the same in another."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one
    return {key: value for key, value in one.items() if value != other[key]}
