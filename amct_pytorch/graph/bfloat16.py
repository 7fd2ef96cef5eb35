"""A graph of a bfloat16 model in float32, which holds every value of it.

Neither ONNX Runtime on a CPU nor the NPU's converter computes in bfloat16; inputs and outputs of
the graph become float32 too.
"""

from __future__ import annotations

import onnx_ir as ir

from .lazy_array import LazyArray

NARROW, WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen(model: ir.Model) -> None:
    """Turns all that is bfloat16 into float32, in place."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
        _widen_type(value)
    for value in graph.inputs:
        _widen_type(value)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for output in node.outputs:
            _widen_type(output)
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                if attribute.as_tensor().dtype == NARROW:
                    node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
            elif name in ("to", "dtype") and attribute.value == NARROW.value:
                node.attributes[name] = ir.AttrInt64(name, WIDE.value)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype != NARROW:
        return tensor
    return LazyArray.of_constant(tensor).astype(WIDE.numpy().type).tensor(str(tensor.name))


def _widen_type(value: ir.Value) -> None:
    if value.dtype == NARROW:
        value.dtype = WIDE
