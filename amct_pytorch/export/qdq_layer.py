"""What the reading of every quantized layer shares: its name, its constants and its pairs."""

from __future__ import annotations

from itertools import chain

import numpy as np
import onnx_ir as ir

from ..graph.site import new_initializer
from .placement import free_name
from .qdq_constants import (
    BITS_AND_MIDDLE,
    DEQUANTIZE,
    QUANTIZE,
    Constant,
    Grid,
    check_pair,
    is_node,
    label,
    read_factors,
)

# What names of a layer's constants end in, behind the name of the layer.
SUFFIXES = (
    ".weight",
    ".weight_ih_l0",  # of LSTM and GRU
    ".wts_scales",
    ".wts_scales_deploy",
    ".wts_offsets_deploy",
    ".bias",
)
# Nodes that put the elements of their first input elsewhere, repeat or leave out some.
MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Slice", "Expand")


def name_after_constants(node: ir.Node) -> str:
    """Names a layer as its constants are, or leaves its name, and returns it: of no other node."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = node.name or node.op_type
    for constant in chain.from_iterable(map(_names_behind, node.inputs[1:])):
        stem = next((constant.removesuffix(s) for s in SUFFIXES if constant.endswith(s)), "")
        if stem:
            name = stem
            break
    node.name = None
    node.name = free_name(graph, name)
    return node.name


def replace_by_constant(node: ir.Node, index: int, constant: Constant) -> None:
    """Puts the float values of `constant` at an input of `node`."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = node.inputs[index]
    assert old is not None
    value = new_initializer(graph, f"{old.name}.float", constant.values)
    node.replace_input_with(index, value)


def check_symmetric(name: str, grid: Grid) -> None:
    """Raises RuntimeError, with `name`, for weights with a zero point."""
    if np.any(grid.offset != 0):
        worst = int(grid.offset.flat[np.argmax(np.abs(grid.offset))])
        raise RuntimeError(
            f"{name}: expected weights with zero point 0, got {worst} on the signed grid; "
            "quantize the weight symmetrically"
        )


def pair_at(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that writes `value`."""
    producer = None if value is None else value.producer()
    return producer if is_node(producer, DEQUANTIZE) else None


def pair_behind(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that `value` comes from, directly or through MOVES."""
    while value is not None and pair_at(value) is None:
        producer = value.producer()
        moves = any(is_node(producer, op_type) for op_type in MOVES)
        value = producer.inputs[0] if producer is not None and moves else None
    return pair_at(value)


def take_pair(node: ir.Node, index: int, dequantize: ir.Node) -> tuple[float, int, int]:
    """Takes the pair that ends in `dequantize` off an input: its scale, signed offset and bits.

    Nodes of MOVES between the pair and the input stay there.
    """
    name = str(node.name)
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    if quantize is None or not is_node(quantize, QUANTIZE):
        raise RuntimeError(
            f"{name}: expected {QUANTIZE} directly before {label(dequantize)}, found "
            f"{'an input' if quantize is None else label(quantize)}"
        )
    check_pair(quantize, dequantize)
    factors = read_factors(quantize)
    if factors.scale.size != 1:
        raise RuntimeError(
            f"{name}: expected one scale for its input, {label(quantize)} has {factors.scale.size}"
        )
    assert factors.codes is not None
    value, source = node.inputs[index], quantize.inputs[0]
    assert value is not None
    assert source is not None
    node.replace_input_with(index, _without(dequantize, value, source))
    bits, middle = BITS_AND_MIDDLE[factors.codes]
    return float(factors.scale[0]), int(factors.zero[0]) - middle, bits


def _without(dequantize: ir.Node, value: ir.Value, source: ir.Value) -> ir.Value:
    """`value`, which comes from `dequantize` through MOVES, made of `source` instead.

    For other readers of a value on the way everything stays as it is.
    """
    producer = value.producer()
    if producer is dequantize:
        return source
    assert producer is not None
    before = producer.inputs[0]
    assert before is not None
    if len(value.uses()) > 1 or value.is_graph_output():
        producer = _copied(producer)
    producer.replace_input_with(0, _without(dequantize, before, source))
    return producer.outputs[0]


def _copied(node: ir.Node) -> ir.Node:
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    name = free_name(graph, node.name or node.op_type)
    value = ir.Value(name=f"{name}.output0", type=old.type, shape=old.shape)
    copy = ir.Node(
        node.domain, node.op_type, node.inputs, node.attributes.values(), outputs=[value], name=name
    )
    graph.insert_after(node, copy)
    return copy


def _names_behind(value: ir.Value | None) -> list[str]:
    """The names of the initializers that a constant comes from; none if it is computed."""
    names, values = [], [value]
    while values:
        value = values.pop(0)
        producer = None if value is None else value.producer()
        if producer is not None:
            values[:0] = producer.inputs
        elif value is not None and value.is_initializer():
            names.append(str(value.name))
        elif value is not None:
            return []
    return names
