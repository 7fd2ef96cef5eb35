"""Large models keep their tensors in one file beside them."""

import io

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import example
from ptq_flow import ptq
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export import model_file
from amct_pytorch.export.model_bytes import model_bytes
from amct_pytorch.export.model_file import has_external_data, load_model
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.export.wire import before_content, fields

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


@pytest.fixture
def kinds():
    initializers = tensors_of_many_kinds()
    node = ir.node("Identity", [initializers[0]])
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [], node.outputs, nodes=[node], initializers=initializers, opset_imports={"": 13}, name="g"
    )
    return ir.Model(graph, ir_version=8, producer_name="p", metadata_props={"key": "value"})


def as_protobuf(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_the_bytes_of_a_model_are_those_of_protobuf(kinds):
    expected = as_protobuf(kinds)
    content, file = model_bytes(kinds), io.BytesIO()
    content.write(file)
    assert (file.getvalue(), content.size) == (expected, len(expected))
    assert sum(isinstance(part, bytes) for part in content.parts) < len(content.parts)
    tensors = {name: value.const_value.name for name, value in kinds.graph.initializers.items()}
    assert all(name == own for name, own in tensors.items())  # as they were


def test_a_loaded_model_has_the_values_and_leaves_them_in_the_file(kinds, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(as_protobuf(kinds))
    loaded = load_model(str(path))
    whole = ir.from_proto(onnx.load_from_string(as_protobuf(kinds)))
    assert as_protobuf(loaded) == as_protobuf(whole)
    assert not has_external_data(loaded)
    values = {name: value.const_value for name, value in loaded.graph.initializers.items()}
    lazy = {name for name, tensor in values.items() if isinstance(tensor, ir.LazyTensor)}
    assert lazy == {"large", "half", "transposed", "torch", "lazy"}


def test_a_graph_in_two_parts_is_one(kinds, tmp_path):
    path = tmp_path / "m.onnx"
    rest = onnx.ModelProto()
    rest.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(100), "more"))
    path.write_bytes(as_protobuf(kinds) + rest.SerializeToString())
    loaded = load_model(str(path))
    assert list(loaded.graph.initializers) == [*kinds.graph.initializers, "more"]
    np.testing.assert_array_equal(
        loaded.graph.initializers["more"].const_value.numpy(), np.ones(100)
    )


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_off_is_refused(kinds, tmp_path, kept):
    content, path = as_protobuf(kinds), tmp_path / "m.onnx"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"m\.onnx: not a"):
        load_model(str(path))


def test_values_that_do_not_fit_their_shape_are_refused(tmp_path):
    tensor = onnx.numpy_helper.from_array(np.ones(100, np.float32), "w")
    tensor.dims[0] = 99
    path = tmp_path / "m.onnx"
    path.write_bytes(
        onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString()
    )
    with pytest.raises(ValueError, match="expected 396 bytes for w, found 400"):
        load_model(str(path))


@given(st.binary(max_size=40))
def test_fields_of_any_bytes_are_in_a_row_or_refused(data):
    try:
        found = list(fields(data, 0, len(data)))
    except ValueError:
        return
    places = [0, *(field.end for field in found)]
    assert [field.start for field in found] == places[:-1]
    assert places[-1] == len(data)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384])
def test_lengths_of_contents(length):
    start = before_content(5, length)
    (field,) = fields(start + bytes(length), 0, len(start) + length)
    assert (field.number, field.content, field.end) == (5, len(start), len(start) + length)


@pytest.mark.parametrize("length", [1, 2**31, 2**40])
def test_a_content_that_ends_behind_its_message_is_refused(length):
    start = before_content(5, length)
    with pytest.raises(ValueError, match="field 5 at byte 0 ends at .*, beyond"):
        list(fields(start, 0, len(start)))
