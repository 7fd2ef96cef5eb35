"""The fake_quant graph: the deploy graph's integers held in float, in standard operators.

Quantization is Mul(1/scale), Round, Add(offset), Clip, Sub(offset); weights and biases are
integer-valued floats; dequantization is one Mul behind the layer. Before it a layer with a shift N
passes its sum through int16: Mul(2^-N), Floor, Clip, Mul(2^N). Stock ONNX Runtime runs it. float16
layers compute in float32 between two Casts.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.site import Site, replace_constants
from .integer_ir import IntegerLayer
from .placement import NodeNames

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


class FakeQuantWriter:
    """Writes the fake_quant form."""

    accumulator = FLOAT

    def __init__(self, names: NodeNames) -> None:
        self._names = names

    def quantize(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> ir.Value:
        # The name of the deploy graph's node, which this chain stands for.
        prefix = self._names.free(f"{layer.name}.quant.fakequant.mul").removesuffix(".mul")
        chain = Chain(graph, at.node, prefix, at.input, before=True)
        if layer.dtype == FLOAT16:
            chain.append("Cast", "cast", attributes=[ir.AttrInt64("to", int(FLOAT))])
        chain.quantize(layer.scale_d, layer.offset_d, layer.act_bits)
        return chain.value

    def constants(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> None:
        weight = None if layer.weight is None else layer.weight.astype(np.float32)
        bias = None if layer.bias is None else layer.bias.astype(np.float32)
        replace_constants(at, layer.name, weight, bias)

    def dequantize(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> ir.Value:
        producer = at.output.producer()
        assert producer is not None
        chain = Chain(graph, producer, f"{layer.name}.fakedequant", at.output, before=False)
        if layer.shift is not None:
            power = _broadcastable(layer, np.ldexp(np.float32(1), layer.shift.astype(np.int32)))
            low = chain.constant("shift.min_val", -(2**15))
            high = chain.constant("shift.max_val", 2**15 - 1)
            chain.append("Mul", "shift.mul", chain.constant("shift.scale", 1 / power))
            chain.append("Floor", "shift.floor")
            chain.append("Clip", "shift.clip", low, high)
            chain.append("Mul", "shift.mul_back", chain.constant("shift.back", power))
        dqscale = _broadcastable(layer, layer.deq_scale)
        chain.append("Mul", "mul", chain.constant("dqscale", dqscale))
        if layer.dtype == FLOAT16:
            chain.append("Cast", "cast", attributes=[ir.AttrInt64("to", int(FLOAT16))])
        return chain.value


def _broadcastable(layer: IntegerLayer, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """One factor per scale, shaped against the layer's output: [1, n, 1...] or [1, n]."""
    trailing = 0
    if layer.op_type in ("Conv", "ConvTranspose") and layer.weight is not None:
        trailing = layer.weight.ndim - 2
    return factors.reshape(1, -1, *[1] * trailing)


class Chain:
    """Nodes in a row, each fed by the one before."""

    def __init__(
        self, graph: ir.Graph, anchor: ir.Node, prefix: str, start: ir.Value, before: bool
    ) -> None:
        self.graph, self.prefix, self.value = graph, prefix, start
        self._anchor, self._before = anchor, before

    def constant(self, name: str, array: object) -> ir.Value:
        values = np.asarray(array, dtype=np.float32)
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(values))])
        self._insert(node, name)
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape(values.shape)
        return node.outputs[0]

    def append(
        self, op_type: str, name: str, *inputs: ir.Value, attributes: list[ir.Attr] | None = None
    ) -> None:
        node = ir.Node("", op_type, [self.value, *inputs], attributes or [])
        self._insert(node, name)
        self.value = node.outputs[0]

    def quantize(self, scale_d: np.float32, offset_d: int, bits: int) -> None:
        """Codes without their offset, as integer-valued floats."""
        half = 2 ** (bits - 1)
        scale = self.constant("scale", np.float32(1) / scale_d)
        offset = self.constant("offset", np.float32(offset_d))
        low, high = self.constant("min_val", -half), self.constant("max_val", half - 1)
        self.append("Mul", "mul", scale)
        self.append("Round", "round")
        self.append("Add", "add", offset)
        self.append("Clip", "clip", low, high)
        self.append("Sub", "sub", offset)

    def _insert(self, node: ir.Node, name: str) -> None:
        node.name = f"{self.prefix}.{name}"
        node.doc_string = f"{node.op_type} of the fake quantization"
        node.outputs[0].name = f"{node.name}.output0"
        if self._before:
            self.graph.insert_before(self._anchor, node)
        else:
            self.graph.insert_after(self._anchor, node)
            self._anchor = node
