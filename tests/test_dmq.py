"""DMQ balancing from the user's side: factors, the models that use them, and their files."""

import copy
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from dmq_flow import Files, balanced_ptq
from models import MODELS, example
from onnx import numpy_helper
from ptq_flow import ptq
from reference import dmq_factor, input_channel_ranges
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import LayerRecord, Records
from amct_pytorch.transforms.dmq import balance_inputs, balance_of, balance_weights

NAMES = {"input_names": ["x"], "output_names": ["y"]}

# Each kind of layer on inputs of two batches: module, shape of the input, its channel dimension.
LAYERS = {
    "Conv1d": (lambda: nn.Conv1d(6, 4, 3), (2, 6, 9), 1),
    "Conv1d, grouped": (lambda: nn.Conv1d(6, 4, 3, groups=2), (2, 6, 9), 1),
    "Conv2d": (lambda: nn.Conv2d(6, 4, 3), (2, 6, 5, 7), 1),
    "Conv2d, grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 7), 1),
    "Conv2d, depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 7), 1),
    "Conv3d": (lambda: nn.Conv3d(6, 4, 2), (2, 6, 3, 4, 5), 1),
    "Conv3d, grouped": (lambda: nn.Conv3d(6, 4, 2, groups=2), (2, 6, 3, 4, 5), 1),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 4, 3), (2, 6, 5), 1),
    "ConvTranspose1d, grouped": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), (2, 6, 5), 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 4, 2), (2, 6, 4, 5), 1),
    "ConvTranspose2d, grouped": (lambda: nn.ConvTranspose2d(6, 4, 2, groups=2), (2, 6, 4, 5), 1),
    "Linear": (lambda: nn.Linear(6, 4), (5, 6), -1),
    "Linear, rank 3": (lambda: nn.Linear(6, 4), (2, 5, 6), -1),
    "Linear, rank 4, no bias": (lambda: nn.Linear(6, 4, bias=False), (2, 3, 5, 6), -1),
}


def one_layer(kind, dtype=torch.float32):
    """A model of the layer "0", and batches whose channels differ much in range."""
    make, shape, axis = LAYERS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(make()).eval().to(dtype)
    ranges = torch.tensor([0.1, 20.0, 1.0, 5.0, 0.5, 2.0])
    ranges = ranges.reshape(-1, *[1] * (len(shape) - 2)) if axis == 1 else ranges
    return model, [(torch.randn(shape) * ranges).to(dtype) for _ in range(2)]


def ranges_of(batches, axis):
    stacked = np.concatenate([np.moveaxis(b.numpy(), axis, 0).reshape(6, -1) for b in batches], 1)
    return np.abs(stacked).max(1)


def factors_of(record_file, layer="0"):
    return np.array(Records.load(record_file)[layer].tensor_balance_factor, np.float32)


def preprocessed(folder, model, batches, **config):
    files = Files(folder, model, batches)
    files.create(**config)
    files.run(files.preprocess())
    return files


# ---- the factors ----


@pytest.mark.parametrize("kind", LAYERS)
def test_factors_are_those_of_the_formula(kind, tmp_path):
    model, batches = one_layer(kind)
    files = preprocessed(tmp_path, model, batches, strength=0.7)
    weight = model[0].weight.detach().numpy()
    transposed, groups = "Transpose" in kind, getattr(model[0], "groups", 1)
    act = ranges_of(batches, LAYERS[kind][2])
    want = dmq_factor(act, input_channel_ranges(weight, transposed, groups), 0.7)
    assert factors_of(files.record).tolist() == want.tolist()


def test_all_batches_count(tmp_path):
    """Channel 2 has 1 in the first batch and 16 in the second: sqrt(16 / 4) and not sqrt(1 / 4)."""
    model = nn.Sequential(nn.Linear(3, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -4.0, 4.0]]))
    batches = [torch.tensor([[4.0, 1.0, 1.0]]), torch.tensor([[1.0, -1.0, -16.0]])]
    files = preprocessed(tmp_path, model, batches)
    assert factors_of(files.record).tolist() == [2.0, 0.5, 2.0]
    probing = files.preprocess()
    files.run(probing)
    probing(batches[0] * 1000)  # more than batch_num: not looked at
    assert factors_of(files.record).tolist() == [2.0, 0.5, 2.0]


def test_probing_changes_nothing(tmp_path):
    model, batches = example("sequence")  # without BatchNorm below
    model.bn = nn.Identity()
    state = copy.deepcopy(model.state_dict())
    files = Files(tmp_path, model, batches)
    files.create()
    outputs = files.run(files.preprocess())
    assert all(map(torch.equal, outputs, files.run(model)))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(output.requires_grad for output in outputs)


def test_factors_are_of_the_folded_weights(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].running_var.copy_(torch.tensor([0.01, 1.0, 4.0, 100.0]))
    batches = [torch.randn(2, 6, 5, 5) for _ in range(2)]
    files = preprocessed(tmp_path, model, batches)
    folded = model[0].weight.detach() / torch.sqrt(model[1].running_var + 1e-5)[:, None, None, None]
    want = dmq_factor(ranges_of(batches, 1), input_channel_ranges(folded.numpy(), False, 1), 0.5)
    np.testing.assert_allclose(factors_of(files.record), want, rtol=1e-5)
    torch.testing.assert_close(files.preprocess()(batches[0]), model(batches[0]))
    files.create(edit=lambda config: config.update(do_fusion=False))
    files.run(files.preprocess())
    plain = input_channel_ranges(model[0].weight.detach().numpy(), False, 1)
    want = dmq_factor(ranges_of(batches, 1), plain, 0.5)
    assert factors_of(files.record).tolist() == want.tolist()


def test_channels_without_signal_or_weight(tmp_path):
    model = nn.Sequential(nn.Linear(4, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 3.0, 0.0, 0.0]]))
    files = preprocessed(tmp_path, model, [torch.tensor([[4.0, 0.0, 2.0, 0.0]])])
    np.testing.assert_allclose(factors_of(files.record), [1.4142, 0.9428, 0.7071, 1.0], atol=5e-5)


@pytest.mark.parametrize("silent", ["input", "weight"])
def test_a_silent_layer_is_not_balanced(silent, tmp_path):
    model, batches = one_layer("Linear")
    if silent == "input":
        batches = [torch.zeros_like(batches[0])]
    else:
        nn.init.zeros_(model[0].weight)
    files = preprocessed(tmp_path, model, batches)
    assert factors_of(files.record).tolist() == [1.0] * 6
    assert files.quantize()(batches[0]).isfinite().all()


def test_only_the_layers_of_the_configuration_are_balanced(tmp_path):
    model, batches = example("digits")
    flow = balanced_ptq(tmp_path, model, batches, layers=["left", "fc"])
    balanced = [
        name for name, r in Records.load(flow.record_file).items() if r.tensor_balance_factor
    ]
    assert balanced == ["left", "fc"]
    assert [n.name for n in flow.deploy.graph.node if n.op_type == "Mul"] == ["left.mul", "fc.mul"]


def test_simplified_configuration_balances_all_but_pooling(tmp_path, caplog):
    model, batches = example("digits")
    text = tmp_path / "simplified.cfg"
    text.write_text(
        "batch_num: 2 common_config { ifmr_quantize {} dmq_balancer { migration_strength: 0.6 } }"
    )
    files = Files(tmp_path, model, batches)
    with caplog.at_level(logging.WARNING):
        amct.create_quant_config(files.config, model, batches[0], config_defination=str(text))
    assert "pool" in caplog.text
    files.run(files.preprocess())
    files.run(files.quantize())
    amct.save_model(files.modified, files.record, files.out)
    records = Records.load(files.record)
    assert [n for n, r in records.items() if not r.tensor_balance_factor] == ["pool"]


# ---- the models ----


@pytest.mark.parametrize("kind", LAYERS)
def test_every_form_of_the_model_computes_the_same(kind, tmp_path):
    model, batches = one_layer(kind)
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES)
    x = batches[1]
    fake_quant = flow.run_fake_quant(x)
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x).numpy()
    np.testing.assert_array_equal(simulated, fake_quant)
    np.testing.assert_array_equal(run_deploy(flow.deploy, {"x": x.numpy()})["y"], fake_quant)


OPTIONS = {
    "hfmg": lambda c: c["0"].update(
        activation_quant_params={"num_bits": 8, "act_algo": "hfmg", "num_of_bins": 1024}
    ),
    "int16": lambda c: c["0"]["activation_quant_params"].update(num_bits=16, asymmetric=False),
    "one scale": lambda c: c["0"]["weight_quant_params"].update(channel_wise=False),
    "6 bits": lambda c: c["0"]["weight_quant_params"].update(num_bits=6),
    "fp16": lambda c: c.update(fakequant_precision_mode="FORCE_FP16_QUANT"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_balancing_goes_with_the_other_options(option, tmp_path):
    model, batches = one_layer("Conv2d, grouped")
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES, edit=OPTIONS[option])
    x = batches[0]
    with torch.no_grad():
        expected = model(x).numpy()
    fake_quant = flow.run_fake_quant(x)
    assert np.abs(fake_quant - expected).max() < 0.06 * np.abs(expected).max()
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x).numpy()
    np.testing.assert_allclose(simulated, fake_quant, rtol=1e-6)
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(exact, fake_quant, rtol=1e-6)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2)

    def forward(self, x):
        return self.up(self.fc(input=x).transpose(1, 2), output_size=[8])


def test_layers_called_with_keywords(tmp_path):
    torch.manual_seed(0)
    model, batches = Keywords().eval(), [torch.randn(2, 3, 6) for _ in range(2)]
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES)
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    x = batches[0]
    expected = simulated(x)
    assert expected.shape == (2, 4, 8)
    np.testing.assert_allclose(expected.numpy(), flow.run_fake_quant(x), rtol=1e-5, atol=1e-6)
    halved = simulated.half()  # the factors keep their precision
    assert halved.up.inverse.dtype == torch.float32
    torch.testing.assert_close(halved(x.half()).float(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, opset, tmp_path):
    model, batches = example(name)
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES, opset_version=opset)
    for form in (flow.deploy, flow.fake_quant):
        assert {o.version for o in form.opset_import if o.domain in ("", "ai.onnx")} == {opset}
    onnx.checker.check_model(flow.fake_quant, full_check=True)
    x = batches[0]
    fake_quant = flow.run_fake_quant(x)
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x).numpy()
    np.testing.assert_allclose(simulated, fake_quant, rtol=1e-5, atol=1e-6)
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(exact, fake_quant, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Conv2d, grouped", "ConvTranspose2d, grouped", "Linear, rank 3"])
def test_names_and_shapes_in_the_graphs(kind, tmp_path):
    model, batches = one_layer(kind)
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES)
    factors = factors_of(flow.record_file)
    for form, quantization in (
        (flow.deploy, ["0.quant"]),
        (flow.fake_quant, ["0.quant.fakequant.mul"]),
    ):
        nodes = {node.name: node for node in form.graph.node}
        mul, constant = nodes["0.mul"], nodes["0.tensor_balance_factor"]
        assert (mul.op_type, list(mul.input)) == ("Mul", ["x", constant.output[0]])
        assert (constant.op_type, constant.output[0]) == (
            "Constant",
            "0.tensor_balance_factor.output0",
        )
        assert list(mul.output) == ["0.mul.output0"]
        readers = [node.name for node in form.graph.node if mul.output[0] in node.input]
        assert readers == quantization
        value = numpy_helper.to_array(constant.attribute[0].t)
        assert value.shape == ((6,) if "Linear" in kind else (1, 6, 1, 1))
        np.testing.assert_array_equal(value.ravel(), np.float32(1) / factors)


class Siblings(nn.Module):
    """Three layers of one input, which another one reads in float."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 4) for _ in range(3))
        self.d = nn.Linear(6, 4)

    def forward(self, x):
        return self.a(x) + self.b(x) + self.c(x) + self.d(x)


def test_layers_of_one_input_are_balanced_each_by_its_own_factors(tmp_path):
    torch.manual_seed(0)
    model, batches = Siblings().eval(), [torch.randn(8, 6) * 3]

    def leave_float(config):
        config["d"]["quant_enable"] = False

    flow = balanced_ptq(tmp_path, model, batches, layers=["a", "b"], edit=leave_float, names=NAMES)
    nodes = {node.name: node for node in flow.deploy.graph.node}
    assert [nodes[name].input[0] for name in ("a.mul", "b.mul", "c.quant", "d")] == ["x"] * 4
    assert nodes["a.quant"].input[0] == "a.mul.output0"
    assert nodes["b.quant"].input[0] == "b.mul.output0"
    x = batches[0]
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(exact, flow.run_fake_quant(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_balancing_alone_computes_what_the_float_model_does(kind, tmp_path):
    model, batches = one_layer(kind)
    files = preprocessed(tmp_path, model, batches)
    balance = balance_of(Records.load(files.record))
    balanced = copy.deepcopy(model)
    balance_weights(balanced, balance)
    assert not torch.equal(balanced[0].weight, model[0].weight)
    balance_inputs(balanced, balance)
    expected = model(batches[0]).detach()
    torch.testing.assert_close(
        balanced(batches[0]), expected, rtol=0, atol=1e-6 * float(expected.abs().max())
    )


class Louder(nn.Module):
    def forward(self, x):
        return x * 1e7


def two_linear(of_input=1.0, of_weight=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Identity(), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        model[0].weight.mul_(of_weight)
    return model, [torch.randn(5, 6) * of_input for _ in range(2)]


@pytest.mark.parametrize("by", ["calibration", "hand"])
def test_a_balanced_layer_that_is_left_float_computes_right(by, tmp_path):
    """Its weights are balanced, so the graphs keep the Mul."""
    model, batches = two_linear()
    if by == "calibration":  # which leaves a layer float whose input is real but below a scale
        model, batches = two_linear(of_input=2e-6, of_weight=0.05)
        model[1] = Louder()
    flow = balanced_ptq(tmp_path, model, batches, save=False, names=NAMES, strength=0.2)
    records = Records.load(flow.record_file)
    alone = LayerRecord(tensor_balance_factor=records["0"].tensor_balance_factor)
    if by == "calibration":
        assert records["0"] == alone
    else:
        Records({**records, "0": alone}).save(flow.record_file)
    flow.save()
    nodes = {node.name: node for node in flow.deploy.graph.node}
    assert nodes["0"].input[0] == nodes["0.mul"].output[0]
    assert {"0.quant", "0.dequant"} & nodes.keys() == set()
    assert {"2.mul", "2.quant", "2.dequant"} <= nodes.keys()
    x = batches[0]
    with torch.no_grad():
        expected = model(x).numpy()
    fake_quant = flow.run_fake_quant(x)
    assert np.abs(fake_quant - expected).max() < 0.02 * np.abs(expected).max()
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x).numpy()
    np.testing.assert_allclose(simulated, fake_quant, rtol=1e-5, atol=1e-6)
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(exact, fake_quant, rtol=1e-5, atol=1e-6)


def test_a_record_without_the_factors_of_balanced_weights_is_refused(tmp_path):
    model, batches = one_layer("Linear")
    flow = balanced_ptq(tmp_path, model, batches)
    record = Records.load(flow.record_file)["0"]
    bare = replace(record, tensor_balance_factor=())
    for records in (Records({"0": bare}), Records({"1": record})):
        records.save(flow.record_file)
        with pytest.raises(RuntimeError, match='layer "[01]": (tensor_balance_factor|key)'):
            flow.save()


def sqnr(model, flow, batches):
    x = batches[0]
    with torch.no_grad():
        expected = model(x).numpy()
    error = flow.run_fake_quant(x) - expected
    return 10 * np.log10((expected**2).sum() / (error**2).sum())


def test_outlier_channels_lose_less_with_balancing(tmp_path):
    """Two of 64 channels are 100 times as large as the others, which share a scale with them.

    All channels count alike in the output: 5 dB without, 41 dB with balancing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    ranges = torch.ones(64)
    ranges[[5, 40]] = 100.0
    with torch.no_grad():
        model[0].weight.div_(ranges)
    batches = [torch.randn(64, 64) * ranges for _ in range(2)]
    for name in ("plain", "balanced"):
        (tmp_path / name).mkdir()
    plain = sqnr(model, ptq(tmp_path / "plain", model, batches), batches)
    balanced = sqnr(model, balanced_ptq(tmp_path / "balanced", model, batches), batches)
    assert plain < 15
    assert balanced > 35


@pytest.mark.parametrize("kind", ["Conv2d, grouped", "ConvTranspose1d, grouped", "Linear"])
def test_half_precision(kind, tmp_path):
    """The constant is float16. ONNX Runtime has no Mul in it on a CPU and may skip the rounding
    of its result, so that codes at ties differ by one; all else agrees bit for bit."""
    model, batches = one_layer(kind, torch.float16)
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES)
    x = batches[0]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x)
    assert simulated.dtype == torch.float16
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_array_equal(simulated.numpy(), exact)
    record = Records.load(flow.record_file)["0"]
    code = record.scale_d * max(record.scale_w) * 127 + 2**-10 * float(simulated.abs().max())
    np.testing.assert_allclose(
        flow.run_fake_quant(x).astype(np.float32), exact.astype(np.float32), rtol=0, atol=code
    )
    nodes = {node.name: node for node in flow.deploy.graph.node}
    value = numpy_helper.to_array(nodes["0.tensor_balance_factor"].attribute[0].t)
    assert value.dtype == np.float16


def test_bfloat16(tmp_path):
    """Its graphs compute in float32, without the rounding of the product: codes at ties differ."""
    model, batches = one_layer("Conv2d, grouped", torch.bfloat16)
    flow = balanced_ptq(tmp_path, model, batches, names=NAMES)
    nodes = {node.name: node for node in flow.deploy.graph.node}
    value = numpy_helper.to_array(nodes["0.tensor_balance_factor"].attribute[0].t)
    np.testing.assert_array_equal(value.ravel(), np.float32(1) / factors_of(flow.record_file))
    x = batches[0]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(x).float().numpy()
    fake_quant = flow.run_fake_quant(x.float())
    with torch.no_grad():
        expected = model.float()(x.float()).numpy()
    largest = np.abs(expected).max()
    assert np.abs(fake_quant - expected).max() < 0.02 * largest
    assert np.abs(fake_quant - simulated).max() < 0.02 * largest


def test_factors_that_float16_cannot_invert(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2)).half().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 6e4], [1.0, 6e4]]))
    x = torch.tensor([[1.0, 2e-7]], dtype=torch.float16)
    files = Files(tmp_path, model, [x])
    files.create(strength=0.8)
    with pytest.raises(RuntimeError, match=r"^0: expected inverse .* within float16, got"):
        files.run(files.preprocess())


# ---- the record ----


def test_the_record_at_every_step(tmp_path):
    model, batches = example("digits")
    files = Files(tmp_path, model, batches)
    files.create(layers=["right", "fc"])
    record = Path(files.record)
    probing = files.preprocess()
    assert record.read_text() == (
        '# calibration: "right" has seen 0 of 2 batches\n'
        '# calibration: "fc" has seen 0 of 2 batches\n'
    )
    probing(batches[0])
    assert record.read_text() == (
        '# calibration: "right" has seen 1 of 2 batches\n'
        '# calibration: "fc" has seen 1 of 2 batches\n'
    )
    probing(batches[1])
    found = Records.load(files.record)
    assert list(found) == ["right", "fc"]
    assert all(
        r == LayerRecord(tensor_balance_factor=r.tensor_balance_factor) for r in found.values()
    )
    assert len(found["right"].tensor_balance_factor) == 8
    files.run(files.quantize())
    final = Records.load(files.record)
    order = ["right", "fc", "stem.0", "left", "depthwise", "up", "pool"]
    assert list(final) == order
    for name, before in found.items():
        assert final[name].tensor_balance_factor == before.tensor_balance_factor
        assert final[name].has_factors
    files.run(files.quantize())  # again from its own record
    assert Records.load(files.record) == final


def test_without_balancing_the_record_starts_anew(tmp_path):
    model, batches = one_layer("Linear")
    files = preprocessed(tmp_path, model, batches)
    files.create(layers=[])
    files.run(files.quantize())
    assert factors_of(files.record).size == 0


IN_A_NEW_PROCESS = """
import sys, torch
import amct_pytorch as amct
folder = sys.argv[1]
model, batches = torch.load(f"{folder}/model.pt", weights_only=False)
paths = [f"{folder}/{name}" for name in ("config.json", "modified.onnx", "record.txt")]
calibrated = amct.quantize_model(*paths, model, batches[0])
for batch in batches:
    calibrated(batch)
amct.save_model(paths[1], paths[2], f"{folder}/new")
"""


def test_quantization_goes_on_from_the_files_in_another_process(tmp_path):
    model, batches = one_layer("Conv2d")
    files = preprocessed(tmp_path, model, batches)
    torch.save((model, batches), tmp_path / "model.pt")
    found = Path(files.record).read_bytes()
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path)], check=True)
    Path(files.record).write_bytes(found)
    files.run(files.quantize())
    amct.save_model(files.modified, files.record, files.out)
    for form in ("deploy", "fake_quant"):
        name = f"_{form}_model.onnx"
        assert (tmp_path / f"new{name}").read_bytes() == (tmp_path / f"out{name}").read_bytes()


# ---- errors ----


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path, *one_layer("Linear"))


def test_nothing_to_balance(tmp_path):
    files = Files(tmp_path, *two_linear())
    files.create(layers=[])
    Path(files.record).write_text("mine")
    with pytest.raises(RuntimeError, match=r"config.json: expected dmq_balancer_param in at least"):
        files.preprocess()
    files.create(layers=["0"], edit=lambda config: config["0"].update(quant_enable=False))
    with pytest.raises(RuntimeError, match=r"config.json: expected dmq_balancer_param in at least"):
        files.preprocess()
    assert Path(files.record).read_text() == "mine"


def test_bad_arguments_leave_the_record_alone(files):
    Path(files.record).write_text("mine")
    with pytest.raises(FileNotFoundError, match="config.json.* is missing"):
        files.preprocess()
    files.create()
    x, model = files.batches[0], files.model
    calls = [
        (TypeError, (files.config, files.record, "model", x)),
        (ValueError, (files.config, files.config, model, x)),
        (ValueError, (files.config, "", model, x)),
        (IsADirectoryError, ("", files.record, model, x)),
        (RuntimeError, (files.config, files.record, model, [x])),
        (RuntimeError, (files.config, files.record, model[0], x)),
    ]
    for error, arguments in calls:
        with pytest.raises(error):
            amct.quantize_preprocess(*arguments)
    with pytest.raises(ValueError, match="opset_version"):
        amct.quantize_preprocess(files.config, files.record, model, x, opset_version=3)
    assert Path(files.record).read_text() == "mine"


def test_a_processed_model_is_refused(files):
    files.create()
    probing = files.preprocess()
    for verb in (
        lambda: amct.quantize_preprocess(files.config, files.record, probing, files.batches[0]),
        lambda: amct.quantize_model(
            files.config, files.modified, files.record, probing, files.batches[0]
        ),
    ):
        with pytest.raises(RuntimeError, match="already processed .*0: BalanceProbe"):
            verb()


def test_activations_that_cannot_be_balanced(files):
    files.create()
    probing = files.preprocess()
    first, second = files.batches
    probing(first)
    for value in (float("nan"), float("inf")):
        bad = second.clone()
        bad[0, 3] = value
        with pytest.raises(RuntimeError, match=r"^0: .* NaN or infinite values \(batch 2 of 2\)"):
            probing(bad)
    with pytest.raises(TypeError, match=r"^0: activation \(batch 2 of 2\): .* got float64"):
        probing(second.double())
    probing(second)  # the bad batches did not count
    want = dmq_factor(
        ranges_of(files.batches, -1),
        input_channel_ranges(files.model[0].weight.detach().numpy(), False, 1),
        0.5,
    )
    assert factors_of(files.record).tolist() == want.tolist()


def test_factors_out_of_range_name_the_layer(files):
    files.create()
    files.model[0].weight.data[:, 2] = 1e25
    with pytest.raises(RuntimeError, match=r"^0: .*factor of channel 2 must be in .*batch 2 of 2"):
        files.run(files.preprocess())


def test_quantize_model_wants_the_factors(files):
    files.create()
    advice = "run quantize_preprocess and its model on batch_num batches first"
    with pytest.raises(RuntimeError, match=f"record.txt.*{advice}"):
        files.quantize()
    Path(files.record).write_text("")
    with pytest.raises(RuntimeError, match=f"expected at least one record, found none.*{advice}"):
        files.quantize()
    files.preprocess()(files.batches[0])
    unfinished = Path(files.record).read_bytes()
    with pytest.raises(RuntimeError, match=f'"0" has seen 1 of 2 batches.*{advice}'):
        files.quantize()
    assert Path(files.record).read_bytes() == unfinished
    assert not Path(files.modified).exists()


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ((), "expected one for each of 6 input channels, found 0"),
        ((1.0,) * 5, "expected one for each of 6 input channels, found 5"),
        ((1.0,) * 5 + (0.0,), "expected 1.19209e-07 to 8.38861e[+]06, got 0.0"),
        ((float("nan"),) + (1.0,) * 5, "got nan"),
    ],
)
def test_factors_that_do_not_fit(files, factors, text):
    files.create()
    Records({"0": LayerRecord(0.1, 0, (0.1,), (0,), tensor_balance_factor=factors)}).save(
        files.record
    )
    with pytest.raises(RuntimeError, match=f'layer "0": tensor_balance_factor: .*{text}'):
        files.quantize()


def test_balanced_weights_beyond_half_precision(tmp_path):
    model, batches = one_layer("Linear", torch.float16)
    files = Files(tmp_path, model, batches)
    files.create()
    Records({"0": LayerRecord(tensor_balance_factor=(6e5,) * 6)}).save(files.record)
    with pytest.raises(RuntimeError, match="^0: its balanced weight has values beyond float16"):
        files.quantize()
