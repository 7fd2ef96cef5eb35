"""The comparison of a torch model with ONNX Runtime, by a graph that returns its input."""

import math

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from amct_pytorch.export.compare import compare_to_onnx

pytest.importorskip("onnxruntime")


class Outputs(nn.Module):
    def __init__(self, *outputs):
        super().__init__()
        self.outputs = [torch.tensor(values) for values in outputs]

    def forward(self, *inputs):
        return self.outputs


def compared(tmp_path, in_torch, in_onnx):
    """The comparison of these outputs, each a list of numbers."""
    names = [f"x{i}" for i in range(len(in_onnx))]
    sizes = [[len(values)] for values in in_onnx]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names]

    def infos(suffix):
        pairs = zip(names, sizes, strict=True)
        return [helper.make_tensor_value_info(n + suffix, TensorProto.FLOAT, s) for n, s in pairs]

    graph = helper.make_graph(nodes, "identities", infos(""), infos("_out"))
    path = str(tmp_path / "model.onnx")
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    inputs = tuple(torch.tensor(values) for values in in_onnx)
    return compare_to_onnx(Outputs(*in_torch), inputs, path)


@pytest.mark.parametrize(
    ("in_torch", "in_onnx", "difference", "differs"),
    [
        ([[1.0, -4.0]], [[1.0, -4.0]], 0.0, False),
        ([[1.0, -4.0]], [[1.0, -3.5]], 0.5, True),
        ([[1.0, -math.inf]], [[1.0, -math.inf]], 0.0, False),
        ([[1.0, math.nan]], [[1.0, math.nan]], 0.0, False),
        ([[1.0, -math.inf]], [[1.5, -math.inf]], 0.5, True),
        ([[1.0, math.inf]], [[1.0, -math.inf]], math.inf, True),
        ([[2.0], [math.nan]], [[2.0], [3.0]], math.inf, True),
        ([[2.0], [3.0]], [[2.0], [math.inf]], math.inf, True),
    ],
)
def test_the_largest_difference(tmp_path, in_torch, in_onnx, difference, differs):
    comparison = compared(tmp_path, in_torch, in_onnx)
    assert comparison.checked
    assert comparison.largest_difference == difference
    assert comparison.differs is differs


def test_infinite_outputs_are_no_measure_for_differences(tmp_path):
    assert compared(tmp_path, [[2.0, math.inf]], [[2.0, math.inf]]).largest_output == 2.0


def test_a_model_that_cannot_run_costs_nothing(tmp_path):
    def fail(*args):
        raise RuntimeError("moved away")

    compared(tmp_path, [[1.0]], [[1.0]])
    model = Outputs([1.0])
    model.forward = fail
    comparison = compare_to_onnx(model, (torch.ones(1),), str(tmp_path / "model.onnx"))
    assert not comparison.checked
    assert "moved away" in comparison.note
