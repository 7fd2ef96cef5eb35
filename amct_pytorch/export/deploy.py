"""The deploy graph: AscendQuant and AscendDequant around integer layers, for the ATC converter.

Both operators are in the default domain, as the converter looks them up there; ONNX Runtime does
not know them. AscendDequant's second input holds one 64-bit word per scale: bits 31..0 the
float32 scale, 39..32 the shift N, 47..40 the weight offset.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._binary import host
from ..graph.lazy_array import LazyArray
from ..graph.site import Site, new_initializer, replace_constants
from .integer_ir import IntegerLayer
from .placement import NodeNames

DTYPE_CODE = {ir.DataType.FLOAT: 0, ir.DataType.FLOAT16: 1}
CODE_TYPE = {4: ir.DataType.INT4, 8: ir.DataType.INT8, 16: ir.DataType.INT16}
INPUT_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 0, "Gemm": 0, "MatMul": 0}


class DeployWriter:
    """Writes the deploy form."""

    accumulator = ir.DataType.INT32

    def __init__(self, names: NodeNames) -> None:
        self._names = names

    def quantize(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> ir.Value:
        name = self._names.free(f"{layer.name}.quant")
        node = ir.Node(
            "",
            "AscendQuant",
            [at.input],
            [
                ir.AttrFloat32("scale", float(np.float32(1) / layer.scale_d)),
                ir.AttrFloat32("offset", float(layer.offset_d)),
                ir.AttrString("dst_type", f"INT{layer.act_bits}"),
            ],
            name=name,
        )
        graph.insert_before(at.node, node)
        output = node.outputs[0]
        output.name = f"{name}.output0"
        output.type, output.shape = ir.TensorType(CODE_TYPE[layer.act_bits]), at.input.shape
        return output

    def constants(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> None:
        weight = layer.weight
        if weight is not None and layer.wts_bits == 4:
            weight = _packed(weight, INPUT_CHANNEL_AXIS[layer.op_type])
        replace_constants(at, layer.name, weight, layer.bias)
        if layer.bias is not None and layer.act_bits == 4:
            self._cast_bias(graph, layer, at.node)

    def dequantize(self, graph: ir.Graph, layer: IntegerLayer, at: Site) -> ir.Value:
        name = self._names.free(f"{layer.name}.dequant")
        n = layer.deq_scale.size
        shift = np.zeros(n, np.uint8) if layer.shift is None else layer.shift
        words = host.dequant_words(layer.deq_scale, np.zeros(n, np.int8), shift)
        node = ir.Node(
            "",
            "AscendDequant",
            [at.output, new_initializer(graph, f"{name}.param", words)],
            [ir.AttrInt64("dtype", DTYPE_CODE[layer.dtype])],
            name=name,
        )
        producer = at.output.producer()
        assert producer is not None
        graph.insert_after(producer, node)
        node.outputs[0].name = f"{name}.output0"
        return node.outputs[0]

    def _cast_bias(self, graph: ir.Graph, layer: IntegerLayer, node: ir.Node) -> None:
        """The int32 bias of a layer with 4-bit activations enters through a Cast to FLOAT."""
        name = self._names.free(f"{layer.name}.bias_quant")
        to = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        cast = ir.Node("", "Cast", [node.inputs[2]], [to], name=name)
        cast.outputs[0].name = f"{name}.output0"
        graph.insert_before(node, cast)
        node.replace_input_with(2, cast.outputs[0])


def _packed(codes: LazyArray, axis: int) -> LazyArray:
    """Two 4-bit codes in a byte along `axis`, the even one in the low half."""
    half = codes.shape[axis] // 2
    shape = (*codes.shape[:axis], half, *codes.shape[axis + 1 :])
    return LazyArray(shape, codes.dtype, lambda: host.pack_int4(codes.read().astype(np.int8), axis))
