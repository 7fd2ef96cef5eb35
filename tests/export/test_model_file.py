"""Large models keep their tensors in one file beside them."""

import io

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import example
from ptq_flow import ptq
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export import model_file
from amct_pytorch.export.model_bytes import model_bytes
from amct_pytorch.export.verify import run_deploy

FORMS = ("modified", "out_deploy_model", "out_fake_quant_model")


@pytest.fixture
def flow(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "EXTERNAL_DATA_LIMIT", 1000)
    model, batches = example("digits")
    flow = ptq(tmp_path, model, batches, input_names=["x"], output_names=["y"])
    flow.batch = batches[0].numpy()
    return flow


def test_one_file_of_data_for_each_model(flow):
    names = {path.name for path in flow.folder.iterdir()}
    assert names == {"config.json", "record.txt"} | {
        f"{form}.onnx{end}" for form in FORMS for end in ("", ".data")
    }


def test_the_models_run_from_their_folder(flow, tmp_path_factory, monkeypatch):
    path = str(flow.folder / "out_fake_quant_model.onnx")
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": flow.batch})
    exact = run_deploy(str(flow.folder / "out_deploy_model.onnx"), {"x": flow.batch})["y"]
    np.testing.assert_allclose(exact, result, rtol=1e-5, atol=1e-5)
    monkeypatch.undo()  # the ordinary limits: everything in one file
    ordinary = ptq(tmp_path_factory.mktemp("ordinary"), *example("digits"), output_names=["y"])
    np.testing.assert_array_equal(ordinary.run_fake_quant(example("digits")[1][0]), result)


def test_missing_data_is_named(flow):
    (flow.folder / "modified.onnx.data").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="modified.onnx"):
        flow.save()


def test_cut_off_data_are_named(flow):
    data = flow.folder / "modified.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"modified\.onnx\.data: expected \d+ bytes for .*, found"):
        flow.save()


def test_a_model_that_came_in_two_files_is_written_in_two(flow, monkeypatch):
    monkeypatch.undo()  # below the ordinary limit, but external where it came from
    (flow.folder / "out_deploy_model.onnx.data").unlink()
    flow.save()
    assert (flow.folder / "out_deploy_model.onnx.data").exists()


def test_two_prefixes_in_one_folder_do_not_meet(flow):
    first = (flow.folder / "out_deploy_model.onnx.data").read_bytes()
    other = str(flow.folder / "other")
    amct.save_model(str(flow.folder / "modified.onnx"), flow.record_file, other)
    assert (flow.folder / "other_deploy_model.onnx.data").read_bytes() == first
    assert (flow.folder / "out_deploy_model.onnx.data").read_bytes() == first


def test_small_tensors_stay_where_shape_inference_reads_them(tmp_path, monkeypatch):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x):
            return self.fc(x).mean((1, 2))

    monkeypatch.setattr(model_file, "EXTERNAL_DATA_LIMIT", 1000)
    ptq(tmp_path, Pooled().eval(), [torch.randn(2, 3, 4, 32)], opset_version=18)
    assert (tmp_path / "out_fake_quant_model.onnx.data").exists()
    path = str(tmp_path / "out_fake_quant_model.onnx")
    onnx.checker.check_model(path, full_check=True)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def tensors_of_many_kinds():
    values = {
        "large": ir.tensor(np.arange(300, dtype=np.float32).reshape(3, 100)),
        "half": ir.tensor(np.arange(300, dtype=np.float16)),
        "small": ir.tensor(np.array([1, 2], np.int64)),
        "none": ir.tensor(np.empty((0, 1000), np.float32)),
        "transposed": ir.Tensor(np.arange(300, dtype=np.int8).reshape(3, 100).T),
        "packed": ir.Tensor(np.zeros((30, 30), np.int8), dtype=ir.DataType.INT4),
        "torch": ir.tensor(torch.arange(90_000, dtype=torch.float32)),  # three bytes of length
        "lazy": ir.LazyTensor(
            lambda: ir.tensor(np.ones(77)), dtype=ir.DataType.DOUBLE, shape=ir.Shape([77])
        ),
        "text": ir.tensor(["word" * 20] * 20),
    }
    for name, tensor in values.items():
        tensor.name = name
    return [ir.Value(name=name, const_value=tensor) for name, tensor in values.items()]


def test_the_bytes_of_a_model_are_those_of_protobuf():
    initializers = tensors_of_many_kinds()
    node = ir.node("Identity", [initializers[0]])
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [], node.outputs, nodes=[node], initializers=initializers, opset_imports={"": 13}, name="g"
    )
    model = ir.Model(graph, ir_version=8, producer_name="p", metadata_props={"key": "value"})
    expected = ir.to_proto(model).SerializeToString(deterministic=True)
    content, file = model_bytes(model), io.BytesIO()
    content.write(file)
    assert (file.getvalue(), content.size) == (expected, len(expected))
    assert sum(isinstance(part, bytes) for part in content.parts) < len(content.parts)
    assert all(value.const_value.name == value.name for value in initializers)  # as they were
