"""Post-training quantization: the verbs. Each reads as its own recipe."""

from __future__ import annotations

import copy
import json
import logging
import os
from typing import Any, cast

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from torch import nn

from .capability import kind_of
from .config.ptq import QuantConfig
from .config.simplified import load_simplified
from .export.deploy import DeployWriter
from .export.fake_quant import FakeQuantWriter
from .export.integer_ir import describe, weight_channels_first
from .export.model_file import load_model, model_files
from .export.placement import rewrite
from .files import check_distinct, check_file_name, check_save_path, check_writable, write_files
from .graph.capture import Capture, capture
from .graph.facts import ModelFacts, analyze, is_of_interest, main_nodes
from .graph.options import DynamicAxes, ExportOptions, split_input_data
from .graph.padding import fold_pad
from .graph.site import LAYER_OPS, Site, UnsupportedSiteError, locate
from .layers.base import check_not_processed
from .records import OpType, Records, RecordTarget
from .transforms.fuse_bn import fuse_batch_norms
from .transforms.insert import RecordKeeper, insert_calibration, keep_record
from .transforms.quantize_weights import quantize_weights

logger = logging.getLogger(__name__)

# The key under which the modified ONNX model names the layers to quantize.
QUANTIZED_LAYERS = "amct_pytorch.quantized_layers"


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
        config_defination: a simplified configuration (protobuf text); `skip_layers`, `batch_num`
            and `activation_offset` are then taken from it.
        opset_version: the ONNX opset to trace with, 11 to 23.

    Raises TypeError or ValueError for arguments that do not fit, RuntimeError for a model that
    cannot be captured or was processed already, OSError for a file that cannot be written.
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
    check_writable(config_file)
    options = ExportOptions(opset_version=opset_version)
    _, facts = _capture(_copy(model, required=False), input_data, options)
    if config_defination is None:
        config = QuantConfig.generate(facts, skip_layers, batch_num, activation_offset)
    else:
        if skip_layers:
            logger.warning(
                "skip_layers is not used: config_defination %s decides", config_defination
            )
        config = load_simplified(config_defination, facts)
    _list_float_layers(facts)
    config.save(config_file)


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
) -> nn.Module:
    """Quantizes the weights and returns a copy of `model` that calibrates its activations.

    Run the returned model on `batch_num` batches; with the last one the record file is complete
    and `save_model` can follow. Its outputs are those of the model with quantized weights.

    Args:
        config_file: the configuration from `create_quant_config`.
        modfied_onnx_file: the ONNX file to write, in float, for `save_model`.
        record_file: the file of factors to write.
        model: the trained float model; it is not changed.
        input_data: as for `create_quant_config`.
        input_names, output_names: names of the graph's inputs and outputs.
        dynamic_axes: per name {axis: name of the dimension} or a list of axes.
        opset_version: opset of all ONNX files, 11 to 23.

    Raises TypeError for weights or activations that are neither float32 nor float16, RuntimeError
    for NaN or infinity in them; both name the layer. See `create_quant_config` for the others.
    """
    check_types(
        "quantize_model",
        model=(model, nn.Module),
        input_names=(input_names, list, None),
        output_names=(output_names, list, None),
        dynamic_axes=(dynamic_axes, dict, None),
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

    model = _copy(model)
    if model.training:
        logger.warning(
            "the model is in training mode: calibration will see dropout and the statistics of "
            "batches, which the exported model does not have; call model.eval() first"
        )
    captured, facts = _capture(model, input_data, options)
    config = QuantConfig.load(config_file, facts)
    _check_offered(config)
    if config.do_fusion:
        fuse_batch_norms(model, captured, facts, config.skip_fusion_layers)
    # In the order of the modules, which is the order of the record file.
    layers = {name: config.enabled[name] for name in facts.layers if name in config.enabled}
    weights = quantize_weights(model, captured, facts, layers, config.fakequant_precision_mode)
    _name_nodes(captured, facts)
    captured.model.metadata_props[QUANTIZED_LAYERS] = json.dumps(list(layers))
    calibration = insert_calibration(model, layers, config.batch_num)
    keeper = RecordKeeper(os.path.abspath(record_file), weights, calibration)
    keep_record(model, keeper)
    write_files(
        {**model_files(captured.model, modfied_onnx_file), record_file: keeper.records().dumps()}
    )
    return model


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
    """
    check_file_name(modfied_onnx_file, "modfied_onnx_file")
    check_file_name(record_file, "record_file")
    check_save_path(save_path)
    if not os.path.isfile(modfied_onnx_file):
        raise ValueError(
            f"modfied_onnx_file {modfied_onnx_file!r} is missing; it is written by quantize_model"
        )
    paths = {form: _output_path(save_path, form) for form in ("deploy", "fake_quant")}
    check_distinct(modfied_onnx_file=modfied_onnx_file, record_file=record_file, **paths)
    for path in paths.values():
        check_writable(path)
    records = Records.load(record_file)
    files: dict[str, bytes] = {}
    for form, writer in (("deploy", DeployWriter()), ("fake_quant", FakeQuantWriter())):
        exported = load_model(modfied_onnx_file)
        ShapeInferencePass()(exported)
        configured = json.loads(exported.metadata_props.pop(QUANTIZED_LAYERS, "[]"))
        sites = _sites(exported)
        records.validate({name: _target(site) for name, site in sites.items()})
        chosen = {name: site for name, site in sites.items() if name in records}
        for site in chosen.values():
            if site.node.op_type == "AveragePool":
                fold_pad(site.node)
        layers = [
            (site, describe(name, site, records[name]))
            for name, site in chosen.items()
            if records[name].has_factors
        ]
        rewrite(exported, layers, writer)
        files.update(model_files(exported, paths[form]))
    if missing := [name for name in configured if name not in records]:
        logger.warning(
            "%s has no factors for %s: left float (if the file was cut off, calibrate again)",
            record_file,
            ", ".join(missing),
        )
    write_files(files)


# ---- steps ----


def check_types(verb: str, **arguments: tuple[Any, ...]) -> None:
    """Raises TypeError for the first argument (value, type, ...) that is of none of its types."""
    for name, (value, *allowed) in arguments.items():
        types = tuple(t for t in allowed if t is not None)
        if value is None and None in allowed:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join("None" if t is None else t.__name__ for t in allowed)
            raise TypeError(f"{verb}: {name}: expected {expected}, got {type(value).__name__}")


def _copy(model: nn.Module, required: bool = True) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        if required:
            raise RuntimeError(
                f"the model cannot be copied ({type(error).__name__}: {error}); quantization works "
                "on a copy: make copy.deepcopy(model) work"
            ) from error
        logger.warning("the model cannot be copied (%s); it is traced itself", error)
        return model


def _capture(
    model: nn.Module, input_data: Any, options: ExportOptions
) -> tuple[Capture, ModelFacts]:
    check_not_processed(model)
    split_input_data(input_data)
    if kind_of(model) is not None:
        raise RuntimeError(
            f"the model itself is a {type(model).__name__} layer, which has no name to configure; "
            "wrap it: torch.nn.Sequential(model)"
        )
    captured = capture(model, input_data, options, is_of_interest)
    return captured, analyze(model, captured)


def _list_float_layers(facts: ModelFacts) -> None:
    for layer in facts.layers.values():
        if layer.reason is not None:
            logger.warning("%s (%s) is left float: %s", layer.name, layer.kind, layer.reason)


def _check_offered(config: QuantConfig) -> None:
    for name, layer in config.enabled.items():
        for key, asked in (
            ("dmq_balancer_param", layer.dmq_balancer_param is not None),
            ("weight_quant_params.wts_algo", layer.weight_quant_params.wts_algo == "ada_quantize"),
        ):
            if asked:
                raise RuntimeError(
                    f"{name}.{key}: this algorithm is not offered by this version; remove the key "
                    "from the configuration, or disable the layer"
                )


def _name_nodes(captured: Capture, facts: ModelFacts) -> None:
    """Gives the node of every layer the layer's name."""
    nodes = {
        name: main_nodes(captured, name, layer.kind)[0]
        for name, layer in facts.layers.items()
        if layer.reason is None
    }
    for node in captured.model.graph:
        if node.name in nodes and nodes[node.name] is not node:
            node.name = f"{node.name}_{node.op_type}"
    for name, node in nodes.items():
        node.name = name


def _sites(model: ir.Model) -> dict[str, Site]:
    """The quantizable nodes of a graph by name, in graph order."""
    sites = {}
    for node in model.graph:
        if node.op_type in LAYER_OPS and node.name:
            try:
                sites[node.name] = locate(node)
            except UnsupportedSiteError as error:
                logger.debug("%s: %s", node.name, error)
    return sites


def _target(site: Site) -> RecordTarget:
    op_type = cast(OpType, site.node.op_type)
    if site.weight is None:
        return RecordTarget(op_type, 1, 0)
    channels = weight_channels_first(site.weight, site.node).shape[0]
    return RecordTarget(op_type, channels, _input_channels(site))


def _input_channels(site: Site) -> int:
    assert site.weight is not None
    if site.node.op_type == "Conv":
        group = site.node.attributes.get("group")
        return int(site.weight.shape[1] * (group.as_int() if group else 1))
    return int(site.weight.shape[0])


def _output_path(save_path: str, form: str) -> str:
    folder, prefix = os.path.split(save_path)
    return os.path.join(folder, f"{prefix}_{form}_model.onnx" if prefix else f"{form}_model.onnx")
