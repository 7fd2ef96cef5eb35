"""The shift factor N: sums that pass through int16 as clip(floor(sum / 2^N)) on their way out."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from ptq_flow import ptq
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import LayerRecord, Records

RNG = np.random.default_rng(0)


def weights(*shape):
    """Multiples of the weight scales, of either sign and up to the limits of 8 bits."""
    return (RNG.integers(-128, 128, shape) / 4).astype(np.float32)


# Node type, shape of its input, weight and bias, attributes; shifts.
LAYERS = {
    "Conv": ("Conv", [2, 4, 6], [weights(3, 4, 3), weights(3)], {}, (1, 9, 3)),
    "Conv, one scale": ("Conv", [2, 4, 6], [weights(3, 4, 3), weights(3)], {}, (7,)),
    "ConvTranspose": (
        "ConvTranspose",
        [2, 4, 5, 5],
        [weights(4, 3, 2, 2), weights(3)],
        {},
        (1, 9, 3),
    ),
    "grouped ConvTranspose": (
        "ConvTranspose",
        [2, 4, 5],
        [weights(4, 2, 3), weights(4)],
        {"group": 2},
        (1, 9, 3, 5),
    ),
    "Gemm": ("Gemm", [5, 8], [weights(8, 3), weights(3)], {}, (7,)),
    "MatMul": ("MatMul", [2, 5, 8], [weights(8, 3), weights(3)], {}, (7,)),
}


def one_layer(op_type, shape, constants, **attributes):
    """A graph of the layer `fc`; a MatMul has its bias in an Add."""
    if op_type == "MatMul":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
            helper.make_node("Add", ["b", "m"], ["y"], name="add"),
        ]
    else:
        nodes = [helper.make_node(op_type, ["x", "w", "b"], ["y"], name="fc", **attributes)]
    graph = helper.make_graph(
        nodes,
        "one_layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(a, name) for a, name in zip(constants, "wb", strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def save(tmp_path, model, record):
    onnx.save(model, tmp_path / "modified.onnx")
    Records({"fc": record}).save(str(tmp_path / "record.txt"))
    amct.save_model(
        str(tmp_path / "modified.onnx"), str(tmp_path / "record.txt"), str(tmp_path / "out")
    )
    return [onnx.load(tmp_path / f"out_{form}_model.onnx") for form in ("deploy", "fake_quant")]


def run(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def record(*shifts, offset_d=-3):
    n = len(shifts)
    return LayerRecord(
        0.5, offset_d, (0.25,) * n, (0,) * n, shifts, act_type="INT8", wts_type="INT8"
    )


@pytest.mark.parametrize("case", LAYERS)
def test_deploy_equals_fake_quant(tmp_path, case):
    op_type, shape, constants, attributes, shifts = LAYERS[case]
    model = one_layer(op_type, shape, constants, **attributes)
    x = RNG.normal(0, 40, shape).astype(np.float32)
    deploy, fake_quant = save(tmp_path, model, record(*shifts))
    shifted = run_deploy(deploy, {"x": x})["y"]
    np.testing.assert_array_equal(run(fake_quant, x), shifted)
    plain, _ = save(tmp_path, model, record(*[0] * len(shifts)))
    assert np.abs(run_deploy(plain, {"x": x})["y"] - shifted).max() > 1


def test_floor_and_limits_of_int16(tmp_path):
    """Codes q = 2 x under one weight of code 127 and N = 1: sums 127 q - 8."""
    model = one_layer("Gemm", [4, 1], [np.array([[31.75]], np.float32), np.float32([-1])])
    deploy, fake_quant = save(tmp_path, model, record(1, offset_d=0))
    x = np.array([[0.5], [-0.5], [63.5], [-64]], np.float32)
    sums = [127 - 8, -127 - 8, 127 * 127 - 8, -127 * 128 - 8]
    halves = [59, -68, 8060, -8132]  # floor, also below zero
    assert halves == [s // 2 for s in sums]
    expected = np.array(halves).reshape(4, 1) * 2 * 0.125
    np.testing.assert_array_equal(run(fake_quant, x), expected)
    np.testing.assert_array_equal(run_deploy(deploy, {"x": x})["y"], expected)


def test_sums_beyond_int16_stop_at_its_limits(tmp_path):
    weight = np.full((8, 1), 31.75, np.float32)
    model = one_layer("Gemm", [2, 8], [weight, np.zeros(1, np.float32)])
    deploy, fake_quant = save(tmp_path, model, record(1, offset_d=0))
    x = np.array([[63.5] * 8, [-64] * 8], np.float32)  # 8 * 127 * 127 / 2 = 64516
    expected = np.array([[32767], [-32768]]) * 2 * 0.125
    np.testing.assert_array_equal(run(fake_quant, x), expected)
    np.testing.assert_array_equal(run_deploy(deploy, {"x": x})["y"], expected)


def test_words_hold_the_shift_in_bits_39_to_32(tmp_path):
    deploy, _ = save(tmp_path, one_layer(*LAYERS["Conv"][:3]), record(1, 16, 3))
    words = next(i for i in deploy.graph.initializer if i.name == "fc.dequant.param")
    assert [hex(w) for w in numpy_helper.to_array(words)] == [
        "0x13e000000",  # 0.125 is 0x3e000000
        "0x103e000000",
        "0x33e000000",
    ]


def test_chain_of_the_fake_quant_graph(tmp_path):
    _, fake_quant = save(tmp_path, one_layer(*LAYERS["Conv"][:3]), record(1, 16, 3))
    nodes = {n.name: n for n in fake_quant.graph.node}
    chain = [n for n in nodes if n.startswith("fc.fakedequant") and nodes[n].op_type != "Constant"]
    assert [(name, nodes[name].op_type) for name in chain] == [
        ("fc.fakedequant.shift.mul", "Mul"),
        ("fc.fakedequant.shift.floor", "Floor"),
        ("fc.fakedequant.shift.clip", "Clip"),
        ("fc.fakedequant.shift.mul_back", "Mul"),
        ("fc.fakedequant.mul", "Mul"),
    ]
    scale = numpy_helper.to_array(nodes["fc.fakedequant.shift.scale"].attribute[0].t)
    assert scale.shape == (1, 3, 1)
    assert scale.reshape(-1).tolist() == [2**-1, 2**-16, 2**-3]


def test_zeros_change_nothing(tmp_path):
    _, fake_quant = save(tmp_path, one_layer(*LAYERS["Gemm"][:3]), record(0))
    assert not [n.name for n in fake_quant.graph.node if "shift" in n.name]


def test_a_shift_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match='"fc": shift_bit: expected 1 to 16, or 0 for all, got 17'):
        save(tmp_path, one_layer(*LAYERS["Gemm"][:3]), record(17))


def test_simulation_in_torch_equals_fake_quant(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, 5)).eval()
    x = torch.randn(4, 3, 6, 6)
    flow = ptq(tmp_path, model, [x])
    records = Records.load(flow.record_file)
    shifted = {
        name: LayerRecord(**{**vars(r), "shift_bit": (5, 6, 7, 8)[: len(r.scale_w)]})
        for name, r in records.items()
    }
    Records(shifted).save(flow.record_file)
    flow.save()
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x)
    np.testing.assert_array_equal(simulated.numpy(), flow.run_fake_quant(x))
