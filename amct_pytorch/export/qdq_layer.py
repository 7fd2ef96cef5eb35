"""What the reading of every quantized layer shares: its name, its constants and its pairs."""

from __future__ import annotations

from itertools import chain

import onnx_ir as ir

from ..graph.site import new_initializer
from .placement import free_name
from .qdq_constants import (
    BITS_AND_MIDDLE,
    DEQUANTIZE,
    QUANTIZE,
    Constant,
    check_pair,
    is_node,
    label,
    read_factors,
)

# What names of a layer's constants end in, behind the name of the layer.
SUFFIXES = (".weight", ".wts_scales", ".wts_offsets_deploy", ".bias")


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


def pair_at(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that writes `value`."""
    producer = None if value is None else value.producer()
    return producer if is_node(producer, DEQUANTIZE) else None


def take_pair(node: ir.Node, index: int, dequantize: ir.Node) -> tuple[float, int, int]:
    """Takes the pair that ends in `dequantize` off an input: its scale, signed offset and bits."""
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
    node.replace_input_with(index, quantize.inputs[0])
    bits, middle = BITS_AND_MIDDLE[factors.codes]
    return float(factors.scale[0]), int(factors.zero[0]) - middle, bits


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
