"""A two-layer model whose every exported integer was worked out by hand.

Conv `conv1` (2 outputs, 1 input, kernel 1x2), Flatten, Gemm `fc` (transB=1, 4 -> 2).
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy

X = np.array([0.31, -0.2, 1.0], np.float32).reshape(1, 1, 1, 3)
CONV_W = np.array([[0.5, -0.25], [1.0, 0.125]], np.float32).reshape(2, 1, 1, 2)
CONV_B = np.array([0.3, -1.7], np.float32)
FC_W = np.array([[0.4, -0.8, 0.1, 0.2], [-0.3, 0.6, 0.7, -0.1]], np.float32)
FC_B = np.array([0.05, -0.07], np.float32)

RECORD = """
record { key: "conv1" value { scale_d: 0.02 offset_d: -10 scale_w: 0.004 scale_w: 0.008
  offset_w: 0 offset_w: 0 act_type: "INT8" wts_type: "INT8" %s} }
record { key: "fc" value { scale_d: 0.05 offset_d: 3 scale_w: 0.00625 offset_w: 0
  act_type: "INT8" wts_type: "INT8" } }
"""


def conv_and_gemm():
    nodes = [
        helper.make_node("Conv", ["x", "conv_w", "conv_b"], ["c"], name="conv1"),
        helper.make_node("Flatten", ["c"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc_w", "fc_b"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "worked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(array, name)
            for array, name in (
                (CONV_W, "conv_w"),
                (CONV_B, "conv_b"),
                (FC_W, "fc_w"),
                (FC_B, "fc_b"),
            )
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def matmul_and_add(bias_first):
    add = ["fc_b", "m"] if bias_first else ["m", "fc_b"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Add", add, ["y"], name="add"),
    ]
    weight = np.array([[0.4, -0.8], [0.1, 0.2], [-0.3, 0.6]], np.float32)
    graph = helper.make_graph(
        nodes,
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(FC_B, "fc_b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def save(tmp_path, model, record):
    onnx.save(model, tmp_path / "modified.onnx")
    (tmp_path / "record.txt").write_text(record)
    amct.save_model(
        str(tmp_path / "modified.onnx"), str(tmp_path / "record.txt"), str(tmp_path / "out")
    )
    return onnx.load(tmp_path / "out_deploy_model.onnx"), onnx.load(
        tmp_path / "out_fake_quant_model.onnx"
    )


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def attributes(model, name):
    return {a.name: helper.get_attribute_value(a) for a in node(model, name).attribute}


def constant(model, name):
    return next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == name)


@pytest.fixture
def exported(tmp_path):
    return save(tmp_path, conv_and_gemm(), RECORD % "")


def test_quant_attributes(exported):
    deploy, _ = exported
    assert attributes(deploy, "conv1.quant") == {
        "scale": 50.0,
        "offset": -10.0,
        "dst_type": b"INT8",
    }
    assert attributes(deploy, "fc.quant") == {"scale": 20.0, "offset": 3.0, "dst_type": b"INT8"}
    assert attributes(deploy, "conv1.dequant") == {"dtype": 0}


def test_integers_of_the_convolution(exported):
    deploy, _ = exported
    weight, bias = (constant(deploy, name) for name in node(deploy, "conv1").input[1:])
    assert weight.dtype == np.int8
    assert weight.reshape(2, 2).tolist() == [[125, -62], [125, 16]]
    assert bias.dtype == np.int32
    assert bias.tolist() == [3750, -10625]


def test_integers_of_the_gemm_lie_k_by_n(exported):
    deploy, _ = exported
    weight, bias = (constant(deploy, name) for name in node(deploy, "fc").input[1:])
    assert weight.tolist() == [[64, -48], [-128, 96], [16, 112], [32, -16]]
    assert attributes(deploy, "fc").get("transB", 0) == 0
    assert bias.tolist() == [160, -224]


def test_dequantization_words(exported):
    deploy, _ = exported
    words = constant(deploy, "conv1.dequant.param")
    assert words.dtype == np.uint64
    assert words.tolist() == [950519213, 958907821]
    assert constant(deploy, "fc.dequant.param").tolist() == [967038731]


def test_force_fp16_clears_the_low_mantissa_bits(tmp_path):
    record = RECORD % 'fakequant_precision_mode: "FORCE_FP16_QUANT" '
    deploy, _ = save(tmp_path, conv_and_gemm(), record)
    assert constant(deploy, "conv1.dequant.param").tolist() == [0x38A7C000, 0x3927C000]


def test_fake_quant_in_onnx_runtime(exported):
    _, fake_quant = exported
    onnx.checker.check_model(fake_quant, full_check=True)
    session = onnxruntime.InferenceSession(
        fake_quant.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": X})
    np.testing.assert_array_equal(y, np.array([[-0.20000002, -1.0550001]], np.float32))


def test_integer_execution_of_deploy(exported):
    deploy, _ = exported
    y = run_deploy(deploy, {"x": X})["y"]
    np.testing.assert_array_equal(y, np.array([[-0.20000002, -1.0550001]], np.float32))


@pytest.mark.parametrize("bias_first", [True, False], ids=["bias first", "bias second"])
def test_bias_at_either_input_of_the_add_becomes_int32(tmp_path, bias_first):
    record = RECORD[RECORD.index('record { key: "fc"') :]
    deploy, fake_quant = save(tmp_path, matmul_and_add(bias_first), record)
    bias = next(i for i in deploy.graph.initializer if i.data_type == TensorProto.INT32)
    assert numpy_helper.to_array(bias).tolist() == [160, -224]
    assert node(deploy, "fc.dequant").input[0] == node(deploy, "add").output[0] == "add_output0"
    assert node(deploy, "fc.dequant").output[0] == "y"
    x = np.array([[1, -0.5, 0.26]], np.float32)
    np.testing.assert_allclose(run_deploy(deploy, {"x": x})["y"], [[0.325, -0.82]], rtol=1e-6)
    session = onnxruntime.InferenceSession(
        fake_quant.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], run_deploy(deploy, {"x": x})["y"])


def test_names_of_the_fake_quant_chain(exported):
    _, fake_quant = exported
    names = [n.name for n in fake_quant.graph.node if n.op_type != "Constant"]
    chain = ["mul", "round", "add", "clip", "sub"]
    assert names == [
        *(f"conv1.quant.fakequant.{step}" for step in chain),
        "conv1",
        "conv1.fakedequant.mul",
        "flatten",
        *(f"fc.quant.fakequant.{step}" for step in chain),
        "fc",
        "fc.fakedequant.mul",
    ]


def test_weights_behind_constant_and_transpose_nodes(tmp_path):
    model = conv_and_gemm()
    graph = model.graph
    kept = [i for i in graph.initializer if i.name != "fc_w"]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    value = numpy_helper.from_array(np.ascontiguousarray(FC_W.T))
    graph.node.insert(0, helper.make_node("Constant", [], ["fc_t"], name="constant", value=value))
    graph.node.insert(1, helper.make_node("Transpose", ["fc_t"], ["fc_w"], name="t", perm=[1, 0]))
    deploy, _ = save(tmp_path, model, RECORD % "")
    assert constant(deploy, "fc.weight").tolist() == [[64, -48], [-128, 96], [16, 112], [32, -16]]
    assert not [n.name for n in deploy.graph.node if n.op_type in ("Constant", "Transpose")]


def test_factors_of_gemm_are_folded(tmp_path):
    model = conv_and_gemm()
    fc = node(model, "fc")
    fc.attribute.append(helper.make_attribute("alpha", 0.5))
    fc.attribute.append(helper.make_attribute("beta", 2.0))
    for initializer in model.graph.initializer:
        factor = {"fc_w": 2.0, "fc_b": 0.5}.get(initializer.name)
        if factor:
            array = numpy_helper.to_array(initializer) * np.float32(factor)
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    deploy, _ = save(tmp_path, model, RECORD % "")
    assert constant(deploy, "fc.weight").tolist() == [[64, -48], [-128, 96], [16, 112], [32, -16]]
    assert constant(deploy, "fc.bias").tolist() == [160, -224]
    assert not node(deploy, "fc").attribute


def test_four_bit_matmul_with_a_bias_is_refused(tmp_path):
    record = RECORD[RECORD.index('record { key: "fc"') :].replace(
        'act_type: "INT8"', 'act_type: "INT4"'
    )
    with pytest.raises(RuntimeError, match="fc: 4-bit activations of a MatMul with a bias"):
        save(tmp_path, matmul_and_add(True), record)
    assert not list(tmp_path.glob("out*"))
