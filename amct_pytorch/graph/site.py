"""Where a quantizable layer sits in an ONNX graph, and its constants in canonical layout.

Weights: Conv [Cout, Cin/g, k...], ConvTranspose [Cin, Cout/g, k...], Gemm and MatMul [K, N].
A weight may stand behind Identity, Transpose or Constant; Gemm's transB, alpha and beta are
folded into the constants. The bias is input 2 of Conv, ConvTranspose and Gemm; for MatMul it is
the constant at either input of the Add that alone consumes the product. A MatMul of two computed
values has neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .lazy_array import Array, LazyArray

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")


class UnsupportedSiteError(ValueError):
    """A node that cannot be quantized; the message says why."""


@dataclass(frozen=True)
class Site:
    """A layer's node with its constants; `output` is the value that dequantization follows."""

    node: ir.Node
    weight: LazyArray | None  # None for AveragePool and for a MatMul of two computed values
    bias: Array | None
    bias_add: ir.Node | None  # the Add that holds a MatMul's bias
    operand: int = 0  # which input of the node is meant; 1: the second of two computed values

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[self.operand]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return (self.bias_add or self.node).outputs[0]

    @property
    def dtype(self) -> ir.DataType:
        """FLOAT or FLOAT16: the type the layer computes in."""
        if self.weight is not None:
            return ir.DataType.from_numpy(self.weight.dtype)
        return self.input.dtype or self.output.dtype or ir.DataType.FLOAT


def locate(node: ir.Node) -> Site:
    """The site of a node of LAYER_OPS; UnsupportedSiteError says why it is none."""
    op = node.op_type
    if op not in LAYER_OPS or node.domain not in ("", "ai.onnx"):
        raise UnsupportedSiteError(f"it is a {op} node, not one of {', '.join(LAYER_OPS)}")
    if op == "AveragePool":
        return Site(node, None, None, None)
    weight = constant_at(node.inputs[1])
    if weight is None:
        raise UnsupportedSiteError("its weight is computed in forward, not a constant")
    bias_value, bias_add = (node.inputs[2] if len(node.inputs) > 2 else None), None
    if op == "MatMul":
        if weight.ndim != 2:
            raise UnsupportedSiteError(f"its weight has {weight.ndim} dimensions, not 2")
        bias_add, bias_value = _bias_of_matmul(node, weight.shape[1])
    bias = constant_of(bias_value)
    if bias_value is not None and bias is None:
        raise UnsupportedSiteError("its bias is computed in forward, not a constant")
    if op == "Gemm":
        if _int(node, "transA", 0):
            raise UnsupportedSiteError("its input is transposed (Gemm with transA=1)")
        if _int(node, "transB", 0):
            weight = weight.transposed()
        weight = weight.times(_float(node, "alpha"))
        beta = np.float32(_float(node, "beta"))
        bias = None if bias is None else (bias * beta).astype(bias.dtype)
        if bias is not None and bias.size != weight.shape[1]:
            raise UnsupportedSiteError(f"its bias has shape {bias.shape}, not one per output")
    return Site(node, weight, None if bias is None else bias.reshape(-1), bias_add)


def is_product(node: ir.Node) -> bool:
    """Whether `node` is a MatMul of two computed values."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return False
    return constant_at(node.inputs[1]) is None


def replace_constants(
    site: Site, name: str, weight: LazyArray | None, bias: Array | LazyArray | None
) -> None:
    """Gives the layer `name` initializers of its own, `<name>.weight` and `<name>.bias`.

    `weight` and `bias` are in the site's layout, of any dtype; None leaves what stands there.
    """
    node = site.node
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if weight is not None:
        if node.op_type == "Gemm":
            for attribute in ("transB", "alpha", "beta"):
                node.attributes.pop(attribute, None)
        replace_input(graph, node, 1, f"{name}.weight", weight)
    if bias is not None:
        owner = site.bias_add or node
        index = 2
        if site.bias_add is not None:
            index = 1 if site.bias_add.inputs[0] is node.outputs[0] else 0
        replace_input(graph, owner, index, f"{name}.bias", bias)


def replace_weight(site: Site, name: str, weight: LazyArray) -> None:
    """Gives the layer `name` the initializer `<name>.weight`, in the layout that torch has.

    That of Linear is [N, K]: a node behind it, or an attribute, says so.
    """
    node = site.node
    if node.op_type not in ("Gemm", "MatMul"):
        replace_constants(site, name, weight, None)
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    replace_input(graph, node, 1, f"{name}.weight", weight)
    if node.op_type == "Gemm":
        node.attributes.pop("alpha", None)
        node.attributes["transB"] = ir.AttrInt64("transB", 1)
        return
    perm = ir.AttrInt64s("perm", [1, 0])
    transpose = ir.Node("", "Transpose", [node.inputs[1]], [perm], name=f"{name}.weight.transpose")
    output = transpose.outputs[0]
    output.name = f"{transpose.name}.output0"
    output.type = ir.TensorType(ir.DataType.from_numpy(weight.dtype))
    output.shape = ir.Shape(weight.shape[::-1])
    graph.insert_before(node, transpose)
    node.replace_input_with(1, output)


def constant_at(value: ir.Value | None) -> LazyArray | None:
    """The array of an initializer or Constant, seen through Identity and Transpose, else None."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None or producer.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else LazyArray.of_constant(tensor)
    if producer.op_type == "Identity":
        return constant_at(producer.inputs[0])
    if producer.op_type == "Transpose":
        array = constant_at(producer.inputs[0])
        perm = producer.attributes.get("perm")
        return None if array is None else array.transposed(tuple(perm.as_ints()) if perm else None)
    return None


def constant_of(value: ir.Value | None) -> Array | None:
    """The array that `constant_at` finds, read."""
    constant = constant_at(value)
    return None if constant is None else constant.read()


def is_shared(value: ir.Value | None) -> bool:
    """Whether a constant has other readers, here or before the Identity and Transpose it passes."""
    if value is None:
        return False
    if len(value.uses()) > 1 or value.is_graph_output():
        return True
    producer = value.producer()
    if producer is None or producer.op_type not in ("Identity", "Transpose"):
        return False
    return is_shared(producer.inputs[0])


def new_initializer(graph: ir.Graph, name: str, array: Array | LazyArray) -> ir.Value:
    """Registers `array` under `name`, or under the first free `name_2`, `name_3`, ..."""
    unique, number = name, 1
    while unique in graph.initializers:
        number += 1
        unique = f"{name}_{number}"
    if isinstance(array, LazyArray):
        tensor = array.tensor(unique)
    else:
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=unique)
    shape = ir.Shape(array.shape)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_input(
    graph: ir.Graph, node: ir.Node, index: int, name: str, array: Array | LazyArray
) -> None:
    """Puts a new initializer at an input of `node`; what stood there goes if it is unused."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, None)
    drop_if_unused(old)
    node.replace_input_with(index, new_initializer(graph, name, array))


def drop_if_unused(value: ir.Value | None) -> None:
    """Removes an initializer, or the constant nodes behind a value, that nothing uses any more."""
    if value is None or value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is None:
        if value.is_initializer() and not value.is_graph_input() and value.graph is not None:
            del value.graph.initializers[str(value.name)]
        return
    if producer.op_type in ("Constant", "Identity", "Transpose") and producer.graph is not None:
        inputs = list(producer.inputs)
        producer.graph.remove(producer, safe=True)
        for source in inputs:
            drop_if_unused(source)


def _bias_of_matmul(node: ir.Node, channels: int) -> tuple[ir.Node | None, ir.Value | None]:
    product = node.outputs[0]
    consumers = list(product.consumers())
    if len(consumers) != 1 or product.is_graph_output() or consumers[0].op_type != "Add":
        return None, None
    add = consumers[0]
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    array = constant_at(other)
    if array is None or array.shape != (channels,):
        return None, None
    return add, other


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()
