"""Reads a QuantizeLinear/DequantizeLinear graph: its float graph and the factors of its layers.

A quantized layer has a pair at its input and its weight comes through DequantizeLinear. Both go:
the layer gets the values that the weight has on its grid, and a record from which the deploy and
the fake_quant graph are written as for any other model. A MatMul of two activations has a pair at
both inputs, an LSTM or GRU at its input and its initial hidden state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common

from ..graph.padding import fold_pad, write_out_padding
from ..graph.recurrent import GATES
from ..graph.site import Site, UnsupportedSiteError, locate
from ..records import LayerRecord, Records
from .deploy import INPUT_CHANNEL_AXIS
from .integer_ir import weight_channels_first
from .qdq_constants import DEQUANTIZE, QUANTIZE, Grid, evaluate, is_node, label, read_factors
from .qdq_layer import (
    check_symmetric,
    name_after_constants,
    pair_at,
    replace_by_constant,
    take_pair,
)
from .qdq_recurrent import RNN, read_recurrent

logger = logging.getLogger(__name__)

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *GATES)
OLDEST_OPSET, OLDEST_OPSET_PER_CHANNEL = 10, 13


def read_qdq(model: ir.Model, source: str) -> Records:
    """Makes `model` a float model, in place, and returns the factors of its quantized layers.

    `source` is the file, for messages. Every quantized layer has a name of its own afterwards.
    Raises RuntimeError, naming the node, for what has no deploy form.
    """
    graph = model.graph
    _check_opset(model, source)
    write_out_padding(graph)
    _fold_biases(graph)
    records = {}
    for node in list(graph):
        if node.op_type == "Conv":
            fold_pad(node)
        if node.op_type not in (*LAYERS, RNN) or node.domain not in ("", "ai.onnx"):
            continue
        record = read_recurrent(node) if node.op_type in (*GATES, RNN) else _read_layer(node)
        if record is not None:
            records[str(node.name)] = record
    common.RemoveUnusedNodesPass()(model)  # what the layers' weights came through
    _fold_other_constants(graph)
    common.RemoveUnusedNodesPass()(model)
    _check_nothing_left(graph)
    if not records:
        raise RuntimeError(
            f"{source}: no quantized layer; expected a model with QuantizeLinear and "
            f"DequantizeLinear at the input and at the weight of a {', '.join(LAYERS)}"
        )
    return Records(records, source=source)


def upgraded(model: ir.Model) -> ir.Model:
    """`model`, in opset 11 if it is in opset 10, which has no Round for fake_quant."""
    if model.opset_imports.get("", 0) != OLDEST_OPSET:
        return model
    proto = version_converter.convert_version(ir.to_proto(model), OLDEST_OPSET + 1)
    return ir.from_proto(proto)


def _check_opset(model: ir.Model, source: str) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise RuntimeError(
            f"{source}: expected opset {OLDEST_OPSET} or above, which has QuantizeLinear, got "
            f"{opset}"
        )
    if opset >= OLDEST_OPSET_PER_CHANNEL:
        return
    for node in model.graph:
        if _is_qdq(node) and read_factors(node).scale.size > 1:
            raise RuntimeError(
                f"{label(node)}: one scale per channel needs opset {OLDEST_OPSET_PER_CHANNEL} or "
                f"above, the model has {opset}; export it with opset_version=13"
            )


def _read_layer(node: ir.Node) -> LayerRecord | None:
    """Makes one layer float and names it; its factors, or None if it is not quantized."""
    pair = pair_at(node.inputs[0])
    weight = evaluate(node.inputs[1])
    grid = None if weight is None else weight.grid
    if pair is None and grid is None:
        return None
    name = name_after_constants(node)
    second = pair_at(node.inputs[1])
    if weight is None and pair is not None and second is not None and node.op_type == "MatMul":
        return _read_product(node, pair, second)
    if weight is None or grid is None:
        assert pair is not None
        found = "is computed in forward" if weight is None else "is float"
        raise RuntimeError(
            f"{name}: its input is quantized (by {label(pair)}), but its weight "
            f"(input 1 of the {node.op_type}) {found}; quantize both or none"
        )
    replace_by_constant(node, 1, weight)
    if pair is None:
        logger.warning(
            "%s: only its weight is quantized: left float, with the values that the weight has "
            "on its grid",
            name,
        )
        return None
    return _record(node, pair, grid)


def _record(node: ir.Node, pair: ir.Node, grid: Grid) -> LayerRecord:
    """The factors of a layer whose weight is a constant already; takes the pair off its input."""
    name = str(node.name)
    try:
        site = locate(node)
    except UnsupportedSiteError as error:
        raise RuntimeError(f"{name}: cannot be quantized: {error}") from None
    check_symmetric(name, grid)
    _check_packing(name, site, grid)
    scale_d, offset_d, act_bits = take_pair(node, 0, pair)
    scale_w = _scale_per_channel(name, site, grid)
    return LayerRecord(
        scale_d=scale_d,
        offset_d=offset_d,
        scale_w=scale_w,
        offset_w=(0,) * len(scale_w),
        act_type=f"INT{act_bits}",
        wts_type=f"INT{grid.bits}",
    )


def _read_product(node: ir.Node, first: ir.Node, second: ir.Node) -> LayerRecord:
    """The factors of a MatMul of two activations; those of the second stand for the weight's."""
    name = str(node.name)
    scales = []
    for index, pair in enumerate((first, second)):
        scale, offset, bits = take_pair(node, index, pair)
        if offset != 0 or bits != 8:
            raise RuntimeError(
                f"{name}: expected 8 bits and offset 0 at both inputs, as no weight is constant, "
                f"got {bits} bits and offset {offset} at input {index}"
            )
        value = node.inputs[index]
        if value is not None and value.shape is not None and len(value.shape) < 2:
            raise RuntimeError(
                f"{name}: expected inputs of 2 dimensions or more, got {len(value.shape)} at "
                f"input {index}"
            )
        scales.append(scale)
    return LayerRecord(scales[0], 0, (scales[1],), (0,), act_type="INT8", wts_type="INT8")


def _scale_per_channel(name: str, site: Site, grid: Grid) -> tuple[float, ...]:
    """The scale of every output channel, or the one of all."""
    node, scale = site.node, grid.scale
    if node.op_type == "Gemm":  # in the layout and with the factor that the site's weight has
        transposed, alpha = node.attributes.get("transB"), node.attributes.get("alpha")
        scale = scale.T if transposed is not None and transposed.as_int() else scale
        scale = scale if alpha is None else scale * np.float32(alpha.as_float())
    rows = weight_channels_first(scale, node).flatten(1).numpy()
    if not np.all(rows == rows[:, :1]):
        raise RuntimeError(
            f"{name}: expected one weight scale, or one per output channel, found several within "
            "an output channel (the axis of the weight's DequantizeLinear?)"
        )
    per_channel = rows[:, 0]
    count = 1 if np.all(per_channel == per_channel[0]) else per_channel.size
    return tuple(per_channel[:count].tolist())


def _check_packing(name: str, site: Site, grid: Grid) -> None:
    assert site.weight is not None
    channels = site.weight.shape[INPUT_CHANNEL_AXIS[site.node.op_type]]
    if grid.bits == 4 and channels % 2:
        raise RuntimeError(
            f"{name}: 4-bit weights are packed in pairs along their input channels, which are "
            f"{channels}; use 8 bits"
        )


# ---- constants that become float ----


def _fold_biases(graph: ir.Graph) -> None:
    """Makes biases float that come as int32 codes."""
    for node in list(graph):
        codes = node.inputs[0] if is_node(node, DEQUANTIZE) else None
        if codes is None or is_node(codes.producer(), QUANTIZE):
            continue
        source = evaluate(codes)
        if source is not None and source.quantize is None and source.values.dtype == np.int32:
            _fold(graph, node)


def _fold_other_constants(graph: ir.Graph) -> None:
    """Makes other quantized constants float, of nodes that are no layers."""
    for node in list(graph):
        if is_node(node, DEQUANTIZE) and evaluate(node.outputs[0]) is not None:
            for reader in _readers(node.outputs[0]):
                logger.warning(
                    "%s: its quantized constant becomes float, with the values on its grid",
                    label(reader),
                )
            _fold(graph, node)


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    constant = evaluate(node.outputs[0])
    assert constant is not None
    if not node.outputs[0].is_graph_output():
        for reader, index in list(node.outputs[0].uses()):
            replace_by_constant(reader, index, constant)


# ---- what the graph has ----


def _check_nothing_left(graph: ir.Graph) -> None:
    left = [node for node in graph.all_nodes() if _is_qdq(node)]
    for node in sorted(left, key=lambda node: node.op_type):  # DequantizeLinear first
        readers = ", ".join(label(reader) for reader in _readers(node.outputs[0]))
        raise RuntimeError(
            f"{label(node)}: has no deploy form; expected {QUANTIZE} and {DEQUANTIZE} only "
            f"directly at the input of a quantized {', '.join(LAYERS)}; this one is read by "
            f"{readers or 'the output of the model'}"
        )


def _is_qdq(node: ir.Node) -> bool:
    return is_node(node, QUANTIZE) or is_node(node, DEQUANTIZE)


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read `value`, each once."""
    return iter(dict.fromkeys(usage.node for usage in value.uses()))
