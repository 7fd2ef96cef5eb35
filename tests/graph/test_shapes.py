"""Shapes of a graph's values, inferred without the values of its weights."""

import numpy as np
import onnx_ir as ir
import pytest

from amct_pytorch.graph.shapes import infer_shapes

FLOAT = ir.DataType.FLOAT


def value(name, shape=None, dtype=FLOAT):
    shape = None if shape is None else ir.Shape(shape)
    return ir.Value(name=name, type=ir.TensorType(dtype) if shape else None, shape=shape)


def constant(name, array):
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(FLOAT))


@pytest.fixture
def model():
    """x [n, 3] @ weight [3, 200], reshaped to [-1, 100]."""
    weight = constant("weight", np.ones((3, 200), np.float32))
    shape = ir.tensor(np.array([-1, 100]), name="shape")
    shape = ir.Value(name="shape", const_value=shape)
    x, y = value("x", ["n", 3]), value("y")
    product = ir.node("MatMul", [x, weight])
    product.outputs[0].name = "product"
    last = ir.Node("", "Reshape", [product.outputs[0], shape], outputs=[y])
    graph = ir.Graph(
        [x],
        [y],
        nodes=[product, last],
        initializers=[weight, shape],
        opset_imports={"": 13},
        name="g",
    )
    return ir.Model(graph, ir_version=8)


def test_values_and_outputs_get_types_and_shapes(model):
    infer_shapes(model)
    product, y = (node.outputs[0] for node in model.graph)
    assert (product.dtype, product.shape) == (FLOAT, ir.Shape(["n", 200]))
    assert (y.dtype, len(y.shape), y.shape[1]) == (FLOAT, 2, 100)  # by the values of `shape`


def test_the_graph_stays_as_it_was_and_no_weight_is_read(model):
    graph = model.graph
    weight = graph.initializers["weight"]

    def read():
        raise AssertionError("read")

    weight.const_value = lazy = ir.LazyTensor(read, dtype=FLOAT, shape=ir.Shape([3, 200]))
    infer_shapes(model)
    assert graph.initializers["weight"].const_value is lazy
    assert list(graph.initializers) == ["weight", "shape"]
    assert [v.name for v in graph.inputs] == ["x"]
    assert next(iter(graph)).outputs[0].shape == ir.Shape(["n", 200])


def test_where_onnx_fails_nothing_changes(model):
    model.graph.inputs[0].shape = ir.Shape([2, 5])  # does not fit the weight
    infer_shapes(model)
    assert [node.outputs[0].shape for node in model.graph] == [None, None]
