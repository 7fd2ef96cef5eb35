"""The files of a quantized model: its modified graph and its record in, each form's graph out."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar, cast

import onnx_ir as ir

from ..files import Content
from ..graph.padding import fold_pad
from ..graph.recurrent import GATES, RecurrentSite, locate_recurrent
from ..graph.shapes import infer_shapes
from ..graph.site import LAYER_OPS, Site, UnsupportedSiteError, is_product, locate
from ..records import LayerRecord, OpType, Records, RecordTarget
from .deploy import DeployWriter
from .dmq import balance_input, check_balanced
from .fake_quant import FakeQuantWriter
from .integer_ir import describe, input_channels, output_channels
from .model_file import has_external_data, model_files
from .placement import NodeNames, Writer, rewrite
from .recurrent import DEPLOY_OPS, RECURRENT_WRITERS, describe_recurrent

T = TypeVar("T")

logger = logging.getLogger(__name__)

# The key under which the modified ONNX model names the layers to quantize.
QUANTIZED_LAYERS = "amct_pytorch.quantized_layers"
# The same for the layers whose weights are balanced: they are wrong without their balance factors.
BALANCED_LAYERS = "amct_pytorch.balanced_layers"
WRITERS: dict[str, Callable[[NodeNames], Writer]] = {
    "deploy": DeployWriter,
    "fake_quant": FakeQuantWriter,
}


def graph_files(
    modified: ir.Model, records: Records, paths: Mapping[str, str]
) -> dict[str, Content]:
    """The contents of the deploy and the fake_quant file, by the path of each form in `paths`.

    Tensors that `modified` has in another file are in another file again.
    """
    external = has_external_data(modified)
    _drop_repeated_inputs(modified.graph)
    infer_shapes(modified)
    configured = json.loads(modified.metadata_props.pop(QUANTIZED_LAYERS, "[]"))
    balanced = json.loads(modified.metadata_props.pop(BALANCED_LAYERS, "[]"))
    sites, recurrent_sites = _sites(modified), _recurrent_sites(modified)
    targets = {name: _target(site) for name, site in sites.items()}
    targets |= {name: _recurrent_target(site) for name, site in recurrent_sites.items()}
    records.validate(targets)
    check_balanced(balanced, records)
    chosen = {name: site for name, site in sites.items() if name in records}
    for site in chosen.values():
        if site.node.op_type == "AveragePool":
            fold_pad(site.node)
    for name, site in chosen.items():
        if factors := records[name].tensor_balance_factor:
            balance_input(modified.graph, name, site, factors)
    integers = {
        name: describe(name, site, records[name])
        for name, site in chosen.items()
        if records[name].has_factors
    }
    recurrent = {
        name: describe_recurrent(name, site, records[name])
        for name, site in recurrent_sites.items()
        if name in records and records[name].has_factors
    }
    files: dict[str, Content] = {}
    for form, path in paths.items():
        exported = modified.clone()
        sites, recurrent_sites = _sites(exported), _recurrent_sites(exported)
        for name, cell in recurrent.items():
            RECURRENT_WRITERS[form](exported.graph, cell, recurrent_sites[name])
        layers = [(sites[name], layer) for name, layer in integers.items()]
        rewrite(exported, layers, WRITERS[form](NodeNames(exported.graph)))
        files.update(model_files(exported, path, external))
    if missing := [name for name in configured if not records.get(name, LayerRecord()).has_factors]:
        logger.warning(
            "%s has no factors for %s: left float (if the file was cut off, calibrate again)",
            records.source,
            ", ".join(missing),
        )
    return files


def model_paths(save_path: str) -> dict[str, str]:
    """Where the graphs of `folder/prefix` are written, by form."""
    folder, prefix = os.path.split(save_path)
    return {
        form: os.path.join(
            folder, f"{prefix}_{form}_model.onnx" if prefix else f"{form}_model.onnx"
        )
        for form in WRITERS
    }


def check_not_exported(model: ir.Model, path: str) -> None:
    """Raises ValueError for a model with the quantization that `graph_files` puts in."""
    for node in model.graph:
        name = node.name or ""
        ops = ("AscendQuant", *DEPLOY_OPS.values())
        if node.op_type in ops or name.endswith((".fakequant.mul", ".fakedequant.mul")):
            raise ValueError(
                f"{path}: it is quantized already (node {name!r}), and can be so once only; pass "
                "the modfied_onnx_file that quantize_model wrote"
            )


def _drop_repeated_inputs(graph: ir.Graph) -> None:
    """Takes initializers from the inputs of a graph, where older models list them too."""
    for value in [value for value in graph.inputs if value.is_initializer()]:
        graph.inputs.remove(value)


def _sites(model: ir.Model) -> dict[str, Site]:
    return _located(model, LAYER_OPS, _locate)


def _locate(node: ir.Node) -> Site:
    return Site(node, None, None, None) if is_product(node) else locate(node)


def _recurrent_sites(model: ir.Model) -> dict[str, RecurrentSite]:
    return _located(model, GATES, locate_recurrent)


def _located(
    model: ir.Model, op_types: Collection[str], locate: Callable[[ir.Node], T]
) -> dict[str, T]:
    """The quantizable nodes of a graph by name, in graph order."""
    sites = {}
    for node in model.graph:
        if node.op_type in op_types and node.name:
            try:
                sites[node.name] = locate(node)
            except UnsupportedSiteError as error:
                logger.debug("%s: %s", node.name, error)
    return sites


def _target(site: Site) -> RecordTarget:
    op_type = cast(OpType, site.node.op_type)
    if site.weight is None:
        return RecordTarget(op_type, 1, 0)
    return RecordTarget(op_type, output_channels(site), input_channels(site))


def _recurrent_target(site: RecurrentSite) -> RecordTarget:
    _, rows, inputs = site.weight.shape
    return RecordTarget(cast(OpType, site.node.op_type), rows, inputs)
