"""Every layer type at every precision: the integers of the deploy model are those of fake_quant."""

import json

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from ptq_flow import ptq
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import Records

# name -> (layer, shape of its input, weight bits that it can have)
LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9), (4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), (2, 4, 8, 8), (4, 6, 7, 8)),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 8, 8), (4, 6, 7, 8)),
    "grouped conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), (6, 7, 8)),
    "depthwise conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8), (6, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, padding=1), (2, 2, 4, 4, 4), (4, 8)),
    "deconv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9), (4, 8)),
    "deconv2d": (lambda: nn.ConvTranspose2d(4, 6, 3, padding=1), (2, 4, 6, 6), (4, 8)),
    "grouped deconv2d": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 6, 6), (8,)),
    "linear": (lambda: nn.Linear(12, 5), (7, 12), (4, 8)),
    "linear of rank 3": (lambda: nn.Linear(12, 5), (2, 7, 12), (4, 8)),
    "linear of rank 4 without bias": (lambda: nn.Linear(12, 5, bias=False), (2, 3, 4, 12), (4, 8)),
    "avg_pool2d": (lambda: nn.AvgPool2d(2), (2, 4, 8, 8), (4, 8)),
}
# 16-bit activations: not for Conv3d, AvgPool2d, and a Linear without bias.
INT16 = set(LAYERS) - {"conv3d", "avg_pool2d", "linear of rank 4 without bias"}
# 4-bit activations: not where the bias is an Add of its own.
INT4 = set(LAYERS) - {"linear of rank 3"}
FORMS = ["int8", "symmetric", "hfmg", "float16", "bfloat16", "force_fp16", "per tensor"]


def flow_of(folder, name, act_bits=8, wts_bits=8, form="int8"):
    """One layer through the whole flow."""
    torch.manual_seed(len(name))
    make, shape, _ = LAYERS[name]
    dtype = getattr(torch, form) if "float" in form else torch.float32
    batches = [(torch.randn(shape) * 1.5 + 0.5).to(dtype) for _ in range(2)]

    def edit(config):
        layer = config["0"]
        layer["activation_quant_params"]["num_bits"] = act_bits
        layer["weight_quant_params"]["num_bits"] = wts_bits
        if form == "symmetric":
            layer["activation_quant_params"]["asymmetric"] = False
        if form == "hfmg":
            layer["activation_quant_params"] = {"act_algo": "hfmg", "num_bits": act_bits}
        if form == "force_fp16":
            config["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
        if form == "per tensor":
            layer["weight_quant_params"]["channel_wise"] = False

    model = nn.Sequential(make()).to(dtype).eval()
    flow = ptq(folder, model, batches, edit, input_names=["x"], output_names=["y"])
    flow.model, flow.batches = model, batches
    return flow


def check_forms(flow, exact=True):
    """simulate_model, fake_quant in ONNX Runtime and the integers of deploy give the same."""
    x = flow.batches[1]
    fed = x.float() if x.dtype == torch.bfloat16 else x
    fake = flow.run_fake_quant(fed)
    deploy = run_deploy(flow.deploy, {"x": fed.numpy()})["y"]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x)
    assert simulated.dtype == x.dtype
    # 16-bit codes make sums that float32 cannot hold exactly; the others are exact.
    tolerance = 0.0 if exact else 1e-6 * float(np.abs(deploy).max())
    np.testing.assert_allclose(fake, deploy, rtol=0, atol=tolerance)
    if x.dtype == torch.bfloat16:  # which the graphs are not
        fake = torch.from_numpy(fake).bfloat16().float().numpy()
    np.testing.assert_allclose(simulated.float().numpy(), fake, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("wts_bits", [4, 6, 7, 8])
def test_weights(tmp_path, name, wts_bits):
    if wts_bits not in LAYERS[name][2]:
        with pytest.raises(ValueError, match=f"weight_quant_params.num_bits: .*got {wts_bits}"):
            flow_of(tmp_path, name, wts_bits=wts_bits)
        return
    flow = flow_of(tmp_path, name, wts_bits=wts_bits)
    check_forms(flow)
    if name != "avg_pool2d":
        assert Records.load(flow.record_file)["0"].wts_type == f"INT{wts_bits}"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("act_bits", [4, 16])
def test_activations(tmp_path, name, act_bits):
    if act_bits == 16 and name not in INT16:
        with pytest.raises(ValueError, match="activation_quant_params.num_bits: .*got 16"):
            flow_of(tmp_path, name, act_bits)
    elif act_bits == 4 and name not in INT4:
        with pytest.raises(ValueError, match="num_bits: .*got 4: .*the bias is an addition"):
            flow_of(tmp_path, name, act_bits)
    else:
        check_forms(flow_of(tmp_path, name, act_bits), exact=act_bits < 16)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_int8(tmp_path, name, form):
    check_forms(flow_of(tmp_path, name, form=form))


@pytest.mark.parametrize("name", ["conv2d", "deconv2d", "linear"])
@pytest.mark.parametrize("form", ["hfmg", "float16", "bfloat16", "force_fp16"])
@pytest.mark.parametrize(("act_bits", "wts_bits"), [(16, 8), (8, 4), (4, 4)])
def test_precisions_together(tmp_path, name, form, act_bits, wts_bits):
    check_forms(flow_of(tmp_path, name, act_bits, wts_bits, form), exact=act_bits < 16)


def weight_of(model):
    return next(i for i in model.graph.initializer if i.name == "0.weight")


def test_int4_weights_are_packed_along_the_input_channels_in_the_deploy_model_alone(tmp_path):
    flow = flow_of(tmp_path, "conv2d", wts_bits=4)
    packed = weight_of(flow.deploy)
    codes = numpy_helper.to_array(weight_of(flow.fake_quant))
    assert (packed.data_type, list(packed.dims)) == (TensorProto.INT8, [6, 2, 3, 3])
    low, high = codes[:, 0::2].astype(int), codes[:, 1::2].astype(int)
    np.testing.assert_array_equal(
        numpy_helper.to_array(packed), ((low & 15) | (high << 4)).astype(np.int8)
    )
    assert codes.min() >= -8
    assert codes.max() <= 7


@pytest.mark.parametrize(("bits", "expected"), [(4, "INT4"), (8, "INT8"), (16, "INT16")])
def test_the_type_of_activations_is_told_to_the_converter(tmp_path, bits, expected):
    flow = flow_of(tmp_path, "conv2d", act_bits=bits)
    quant = next(n for n in flow.deploy.graph.node if n.op_type == "AscendQuant")
    assert {a.name: a.s.decode() for a in quant.attribute if a.name == "dst_type"} == {
        "dst_type": expected
    }
    assert Records.load(flow.record_file)["0"].act_type == expected


def test_force_fp16_is_in_record_scale_word_and_bias(tmp_path):
    flow = flow_of(tmp_path, "conv2d", form="force_fp16")
    record = Records.load(flow.record_file)["0"]
    assert record.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert np.float32(np.float16(record.scale_d)) == np.float32(record.scale_d)
    exact = np.float32(record.scale_w) * np.float32(record.scale_d)
    truncated = (exact.view(np.uint32) & 0xFFFFE000).view(np.float32)
    initializers = {i.name: numpy_helper.to_array(i) for i in flow.deploy.graph.initializer}
    words = initializers["0.dequant.param"]
    np.testing.assert_array_equal(words.astype(np.uint32).view(np.float32), truncated)
    bias = flow.model[0].bias.detach().double().numpy()
    np.testing.assert_array_equal(initializers["0.bias"], np.rint(bias / truncated))


class Pair(nn.Module):
    """A convolution with BatchNorm, and a linear layer behind a cast that forward asks for."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x))).mean((2, 3), dtype=torch.float32)
        return self.fc(x.to(self.fc.weight.dtype)) * torch.tensor(2.0, dtype=x.dtype)


@pytest.mark.parametrize("opset", [13, 18])
def test_the_graphs_of_a_bfloat16_model_are_float32(tmp_path, opset):
    model = Pair().bfloat16().eval()
    batches = [torch.randn(2, 3, 8, 8).bfloat16() for _ in range(2)]
    flow = ptq(tmp_path, model, batches, input_names=["x"], opset_version=opset)
    for graph in (flow.modified.graph, flow.fake_quant.graph, flow.deploy.graph):
        types = {i.data_type for i in graph.initializer}
        types |= {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        types |= {a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute}
        assert TensorProto.BFLOAT16 not in types
    expected = model(batches[0]).detach().float().numpy()
    result = flow.run_fake_quant(batches[0].float())
    error = result - expected
    assert 10 * np.log10((expected**2).sum() / (error**2).sum()) > 25
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(batches[0])
    np.testing.assert_allclose(simulated.detach().float().numpy(), result, rtol=0.05, atol=0.02)


def test_bfloat16_weights_are_quantized_as_their_float32_values(tmp_path):
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(4, 6, 3)).bfloat16().eval()
    wide = nn.Sequential(nn.Conv2d(4, 6, 3)).eval()
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 4, 8, 8).bfloat16()
    folders = [tmp_path / "narrow", tmp_path / "wide"]
    for folder in folders:
        folder.mkdir()
    ptq(folders[0], narrow, [x])
    ptq(folders[1], wide, [x.float()])
    first, second = ((folder / "record.txt").read_text() for folder in folders)
    assert first == second
    first, second = ((folder / "out_deploy_model.onnx").read_bytes() for folder in folders)
    assert first == second


def test_automatic_calibration_compares_a_bfloat16_model_with_its_export(tmp_path):
    from amct_pytorch.common.auto_calibration import AutoCalibrationEvaluatorBase

    batch = torch.randn(4, 3, 8, 8).bfloat16()

    class Evaluator(AutoCalibrationEvaluatorBase):
        def calibration(self, model):
            model(batch)

        def evaluate(self, model):
            return float(model(batch).detach().float().sum())

        def metric_eval(self, original_metric, new_metric):
            return True, 0.0

    paths = [str(tmp_path / name) for name in ("config.json", "record.txt", "net")]
    model = Pair().bfloat16().eval()
    amct.create_quant_config(paths[0], model, batch)
    result = amct.accuracy_based_auto_calibration(model, Evaluator(), *paths, batch)
    assert result.fidelity.checked, result.fidelity.note
    assert not result.fidelity.differs
    assert json.loads((tmp_path / "net_quant.json").read_text())["layers"]
