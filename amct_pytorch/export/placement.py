"""Where quantization and dequantization go in a graph; what they are is the writers' matter.

Quantization stands directly at input 0 of a layer, and at input 1 of a MatMul without weight; it is
shared by layers with equal factors on one value. Dequantization stands directly behind the layer
(behind the Add that holds a MatMul's bias). The names of the graph's inputs and outputs stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from ..graph.site import Site
from .integer_ir import IntegerLayer


class Writer(Protocol):
    """One form of the exported graph."""

    accumulator: ir.DataType  # the type between a layer and its dequantization

    def quantize(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> ir.Value:
        """Inserts the quantization of the site's input before its node; returns the codes."""

    def constants(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> None:
        """Replaces the weight and the bias."""

    def dequantize(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> ir.Value:
        """Inserts the dequantization behind the site's output; returns the layer's real output."""


def rewrite(model: ir.Model, layers: Sequence[tuple[Site, IntegerLayer]], writer: Writer) -> None:
    """Quantizes `layers`, given in graph order, in place."""
    graph = model.graph
    shared: dict[tuple[object, ...], ir.Value] = {}
    for site, layer in layers:
        inputs = [(site, layer)]
        if layer.scale_second is not None:
            inputs.append((replace(site, operand=1), _second(layer, layer.scale_second)))
        writer.constants(graph, layer, site)
        for at, factors in inputs:
            scale_d = factors.scale_d.tobytes()
            key = (at.input, scale_d, factors.offset_d, factors.act_bits, factors.dtype)
            if key not in shared:
                shared[key] = writer.quantize(graph, factors, at)
            site.node.replace_input_with(at.operand, shared[key])
        _take_over(graph, site, writer.dequantize(graph, layer, site))
        for value in {site.node.outputs[0], site.output}:
            value.type = ir.TensorType(writer.accumulator)


def _second(layer: IntegerLayer, scale: np.float32) -> IntegerLayer:
    """The factors of a layer's second input as if it were the first."""
    name = f"{layer.name}.second"
    return replace(layer, name=name, scale_d=scale, offset_d=0, act_bits=layer.wts_bits)


def _take_over(graph: ir.Graph, site: Site, real: ir.Value) -> None:
    """Makes `real` stand for the site's output: consumers, graph output and its name."""
    raw = site.output
    chain = _nodes_between(raw, real)
    real.type, real.shape = raw.type, raw.shape
    for consumer, index in list(raw.uses()):
        if consumer not in chain:
            consumer.replace_input_with(index, real)
    if raw.is_graph_output():
        producer = raw.producer()
        assert producer is not None
        real.name, raw.name = raw.name, f"{producer.name}_output0"
        for index, output in enumerate(graph.outputs):
            if output is raw:
                graph.outputs[index] = real


def _nodes_between(start: ir.Value, end: ir.Value) -> set[ir.Node]:
    nodes: set[ir.Node] = set()
    node = end.producer()
    while node is not None:
        nodes.add(node)
        if start in node.inputs:
            break
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return nodes


class NodeNames:
    """The names that nodes of a graph have, or are going to have."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {node.name for node in graph}

    def free(self, name: str) -> str:
        """`name`, or `name1`, `name2`, ... when a node has it already; it is then taken."""
        unique, number = name, 0
        while unique in self._taken:
            number += 1
            unique = f"{name}{number}"
        self._taken.add(unique)
        return unique


def free_name(graph: ir.Graph, name: str) -> str:
    """The free name for one node; ask `NodeNames` for many."""
    return NodeNames(graph).free(name)
