"""AdaRound in quantize_model: roundings are learnt on the batches of calibration."""

import copy
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import example
from ptq_flow import Flow, ptq
from torch import nn

import amct_pytorch as amct
from amct_pytorch.graph.activation import activation_after
from amct_pytorch.graph.capture import capture
from amct_pytorch.graph.facts import is_of_interest, main_nodes
from amct_pytorch.graph.options import ExportOptions
from amct_pytorch.ops import ada_scale, ifmr
from amct_pytorch.records import Records
from amct_pytorch.transforms import adaround

ADA = ("Conv2d", "ConvTranspose2d", "Linear")


def ada(model, *names, **options):
    """An edit of the configuration: AdaRound for `names`, else for all layers that can have it."""
    chosen = names or [n for n, m in model.named_modules() if type(m).__name__ in ADA]

    def edit(config):
        for name in chosen:
            wanted = {"wts_algo": "ada_quantize", "num_iteration": 60, **options}
            config[name]["weight_quant_params"] = wanted

    return edit


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(64, 3),
    ).eval()  # fmt: skip


def batches_of(model, count=2, rows=8, size=8):
    generator = torch.Generator().manual_seed(1)
    channels = next(model.parameters()).shape[1]
    return [torch.randn(rows, channels, size, size, generator=generator) for _ in range(count)]


def start(folder, model, data, batch_num, edit):
    """quantize_model, as `ptq` does it, before any batch."""
    config = folder / "config.json"
    amct.create_quant_config(str(config), model, data, batch_num=batch_num)
    document = json.loads(config.read_text())
    edit(document)
    config.write_text(json.dumps(document))
    paths = (str(folder / name) for name in ("config.json", "modified.onnx", "record.txt"))
    return amct.quantize_model(*paths, model, data)


def weights_of(calibrated):
    """By layer: the weight that the calibrated model runs with."""
    stand_ins = [m for m in calibrated.modules() if hasattr(m, "calibration")]
    return {m.name: m.weight.detach().clone() for m in stand_ins if hasattr(m, "weight")}


def stored_weight(flow, name):
    """The weight in the modified ONNX model, in the layout of the module."""
    initializers = {i.name: onnx.numpy_helper.to_array(i) for i in flow.modified.graph.initializer}
    return initializers[f"{name}.weight"]


def steps(flow, name, module, weight):
    """A weight, divided by the recorded scale of its channel, in float64."""
    weight = weight.astype(np.float64)
    scale = np.array(Records.load(flow.record_file)[name].scale_w)
    if not isinstance(module, nn.ConvTranspose2d):
        return weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    scale = np.broadcast_to(scale, module.out_channels).reshape(module.groups, 1, -1, 1, 1)
    return (weight.reshape(module.groups, -1, *weight.shape[1:]) / scale).reshape(weight.shape)


# ---- what comes out ----


@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize("name", ["digits", "sequence"])
def test_weights_end_on_their_grid(tmp_path, name, channel_wise):
    """Depthwise, grouped transposed, Linear of rank 2 to 4."""
    model, batches = example(name)

    def edit(config):
        ada(model)(config)
        for layer, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                config[layer]["weight_quant_params"]["channel_wise"] = channel_wise
        config["do_fusion"] = False  # so that the model's own weights are what is rounded

    flow = ptq(tmp_path, model, batches, edit)
    otherwise = 0
    for layer, module in model.named_modules():
        if type(module).__name__ not in ADA:
            continue
        got = steps(flow, layer, module, stored_weight(flow, layer))
        codes = np.rint(got)
        np.testing.assert_allclose(got, codes, atol=1e-4)
        assert -128 <= codes.min() <= codes.max() <= 127
        exact = steps(flow, layer, module, module.weight.detach().numpy())
        assert np.abs(codes - np.clip(exact, -128, 127)).max() < 1
        otherwise += (codes != np.rint(exact).clip(-128, 127)).sum()
        record = Records.load(flow.record_file)[layer]
        assert record.wts_type == "INT8"
        many = channel_wise and not isinstance(module, nn.Linear)
        outputs = getattr(module, "out_channels", None) or module.out_features
        assert len(record.scale_w) == (outputs if many else 1)
    assert otherwise > 0  # than to nearest


@pytest.mark.parametrize("name", ["digits", "sequence"])
def test_fake_quant_model_computes_what_the_simulation_does(tmp_path, name):
    model, batches = example(name)
    flow = ptq(tmp_path, model, batches, ada(model))
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    with torch.no_grad():
        expected = simulated(batches[0]).numpy()
    np.testing.assert_allclose(flow.run_fake_quant(batches[0]), expected, rtol=1e-5, atol=1e-6)
    for layer, weight in weights_of(flow.calibrated).items():
        module = model.get_submodule(layer)
        if type(module).__name__ in ADA:
            assert weight.shape == module.weight.shape


def test_four_bit_outputs_come_closer_to_the_float_model(tmp_path):
    model = small()
    batches = batches_of(model, rows=32)
    errors = {}
    for iterations in (0, 500):
        folder = tmp_path / str(iterations)
        folder.mkdir()
        edit = ada(model, num_bits=4, num_iteration=iterations)
        flow = ptq(folder, model, batches, edit)
        with torch.no_grad():
            x = torch.cat(batches)
            errors[iterations] = ((flow.calibrated(x) - model(x)) ** 2).mean().item()
        assert Records.load(flow.record_file)["0"].wts_type == "INT4"
        codes = steps(flow, "0", model[0], stored_weight(flow, "0"))
        assert -8 <= np.rint(codes).min() <= np.rint(codes).max() <= 7
    assert errors[500] < 0.6 * errors[0]


def test_no_iterations_are_nearest_rounding(tmp_path):
    model = small()
    flow = ptq(tmp_path, model, batches_of(model), ada(model, "0", num_iteration=0))
    scale = ada_scale(model[0].weight, 8, 0).reshape(-1, 1, 1, 1)
    nearest = torch.round(model[0].weight / scale).clamp(-128, 127) * scale
    torch.testing.assert_close(weights_of(flow.calibrated)["0"], nearest)
    np.testing.assert_array_equal(Records.load(flow.record_file)["0"].scale_w, scale.flatten())


def test_what_is_worse_than_nearest_is_not_kept(tmp_path, monkeypatch):
    """Steps so long that they decide at random."""
    model = small()
    edit = ada(model, "0", num_iteration=30)
    calibrated = start(tmp_path, model, batches_of(model)[0], 2, edit)
    nearest = weights_of(calibrated)["0"]
    monkeypatch.setattr(adaround, "LEARNING_RATE", 1000.0)
    with torch.no_grad():
        for batch in batches_of(model):
            calibrated(batch)
    assert torch.equal(weights_of(calibrated)["0"], nearest)


def test_activation_factors_belong_to_the_rounded_weights(tmp_path):
    model = small()
    batches = batches_of(model)
    flow = ptq(tmp_path, model, batches, ada(model, num_bits=4, num_iteration=200))
    with torch.no_grad():
        first = flow.calibrated[:2]
        scale, offset = ifmr(torch.cat([first(batch) for batch in batches]))
    record = Records.load(flow.record_file)["2"]
    assert (record.scale_d, record.offset_d) == (scale.item(), offset.item())


def test_only_the_layers_that_ask_for_it(tmp_path):
    model = small()
    flow = ptq(tmp_path, model, batches_of(model), ada(model, "2", num_bits=4, num_iteration=300))
    folder = tmp_path / "arq"
    folder.mkdir()
    plain = ptq(folder, model, batches_of(model))
    got, want = weights_of(flow.calibrated), weights_of(plain.calibrated)
    assert {name for name in got if not torch.equal(got[name], want[name])} == {"2"}


def test_half_precision(tmp_path):
    model, batches = example("digits", torch.float16)
    flow = ptq(tmp_path, model, batches, ada(model, "left", "fc", num_iteration=20))
    assert weights_of(flow.calibrated)["left"].dtype == torch.float16
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    with torch.no_grad():
        torch.testing.assert_close(simulated(batches[0]), model(batches[0]), rtol=0.1, atol=0.02)


def test_batches_of_other_sizes(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)).eval()
    batches = [torch.randn(5, 2, 8, 8), torch.randn(3, 2, 9, 7), torch.randn(40, 2, 8, 8)]
    axes = {"input": {0: "n", 2: "h", 3: "w"}}
    names = {"input_names": ["input"], "dynamic_axes": axes}
    flow = ptq(tmp_path, model, batches, ada(model), **names)
    assert flow.run_fake_quant(batches[1]).shape == (3, 2, 8, 6)


# ---- what is left as it was ----


class Frozen(nn.Module):
    """A BatchNorm that is not folded, and dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.bn = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(self.bn(self.dropout(self.conv(x))))


def test_batch_norms_modes_and_random_numbers(tmp_path):
    torch.manual_seed(0)
    model = Frozen().eval()
    model.bn.train()
    batches = batches_of(model, 3)
    calibrated = start(tmp_path, model, batches[0], 3, ada(model))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    modes = {name: module.training for name, module in calibrated.named_modules()}
    with torch.no_grad():
        for batch in batches:
            calibrated(batch)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert modes == {name: module.training for name, module in calibrated.named_modules()}
    assert calibrated.bn.num_batches_tracked == 3  # the calls of the user, not ours
    assert all(parameter.grad is None for parameter in calibrated.parameters())


def test_the_float_model_is_not_changed(tmp_path):
    model = small()
    before = copy.deepcopy(model.state_dict())
    ptq(tmp_path, model, batches_of(model), ada(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("threads", [1, 2])
def test_same_batches_give_the_same_files(tmp_path, threads):
    model, contents = small(), []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for run in ("a", "b"):
            folder = tmp_path / run
            folder.mkdir()
            torch.manual_seed(len(contents))  # plays no part
            ptq(folder, model, batches_of(model), ada(model))
            contents.append([(folder / n).read_bytes() for n in ("modified.onnx", "record.txt")])
    finally:
        torch.set_num_threads(before)
    assert contents[0] == contents[1]


# ---- how it is called ----


def test_files_are_complete_with_the_last_batch_and_not_before(tmp_path):
    model = small()
    first, second = batches_of(model)
    edit = ada(model, num_bits=4, num_iteration=300)
    calibrated = start(tmp_path, model, first, 2, edit)
    flow = Flow(tmp_path, calibrated)
    nearest = (tmp_path / "modified.onnx").read_bytes()
    with torch.no_grad():
        calibrated(first)
    assert (tmp_path / "modified.onnx").read_bytes() == nearest
    with pytest.raises(RuntimeError, match='"0" has seen 1 of 2'):
        flow.save()
    with torch.no_grad():
        calibrated(second)
    rounded = (tmp_path / "modified.onnx").read_bytes()
    assert rounded != nearest
    Records.load(flow.record_file).check_finished()
    for name, weight in weights_of(calibrated).items():
        stored = stored_weight(flow, name)
        np.testing.assert_array_equal(stored, weight.numpy())
    with torch.no_grad():
        calibrated(first)  # calibration is over
    assert (tmp_path / "modified.onnx").read_bytes() == rounded


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_grad_mode(tmp_path, mode):
    model = small()
    calibrated = start(tmp_path, model, batches_of(model)[0], 2, ada(model))
    with mode():
        for batch in batches_of(model):
            calibrated(batch)
    Records.load(str(tmp_path / "record.txt")).check_finished()


def test_parts_of_the_model_are_not_enough(tmp_path):
    model = small()
    batch = batches_of(model)[0]
    calibrated = start(tmp_path, model, batch, 2, ada(model))
    calibrated[0](batch)
    with pytest.raises(RuntimeError, match=r"^0: this is batch 2 of 2, but only 0 were calls of"):
        calibrated[0](batch)
    calibrated(batch)
    calibrated(batch)
    Records.load(str(tmp_path / "record.txt")).check_finished()


def test_a_call_that_fails_does_not_count(tmp_path):
    model = small()
    first, second = batches_of(model)
    calibrated = start(tmp_path, model, first, 2, ada(model))
    calibrated(first)
    with pytest.raises(RuntimeError):
        calibrated(torch.randn(2, 2, 9, 9))  # does not fit the last layer
    calibrated(second)
    twin = tmp_path / "twin"
    twin.mkdir()
    flow = ptq(twin, model, [first, second], ada(model))
    record = (tmp_path / "record.txt").read_text()
    assert record == Path(flow.record_file).read_text()


def test_two_models_at_once(tmp_path):
    models = [small(), small()]
    with torch.no_grad():
        models[1][0].weight.mul_(2)
    runs = []
    for index, model in enumerate(models):
        (tmp_path / str(index)).mkdir()
        data = batches_of(model)[0]
        runs.append(start(tmp_path / str(index), model, data, 2, ada(model)))
    for batch in batches_of(models[0]):
        for calibrated in runs:
            calibrated(batch)
    for index, model in enumerate(models):
        folder = tmp_path / f"alone{index}"
        folder.mkdir()
        flow = ptq(folder, model, batches_of(model), ada(model))
        got, want = weights_of(runs[index]), weights_of(flow.calibrated)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_model_can_be_copied_and_stored(tmp_path):
    model = small()
    first, second = batches_of(model)
    calibrated = start(tmp_path, model, first, 2, ada(model))
    calibrated(first)
    copied = copy.deepcopy(calibrated)
    copied(second)
    assert all(
        (w - model.get_submodule(n).weight).abs().max() < 0.01
        for n, w in weights_of(copied).items()
    )
    pickle.dumps(copied)
    Records.load(str(tmp_path / "record.txt")).check_finished()


def test_nan_names_the_layer_and_leaves_nearest_rounding(tmp_path):
    model = small()
    first, second = batches_of(model)
    calibrated = start(tmp_path, model, first, 2, ada(model))
    nearest = weights_of(calibrated)
    second[0, 0, 0, 0] = float("nan")
    calibrated(first)
    with pytest.raises(RuntimeError, match=r"^0: AdaRound cannot go on: its loss is nan"):
        calibrated(second)
    assert all(torch.equal(w, nearest[name]) for name, w in weights_of(calibrated).items())
    with pytest.raises(RuntimeError, match="calibration is unfinished"):
        Flow(tmp_path, calibrated).save()


def test_the_log_tells_of_every_layer(tmp_path, caplog):
    model = small()
    with caplog.at_level(logging.INFO, "amct_pytorch"):
        ptq(tmp_path, model, batches_of(model), ada(model))
    lines = [r.getMessage() for r in caplog.records if "AdaRound" in r.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["0", "2", "5"]


# ---- the activation function behind a layer ----


class Followed(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.activation = activation
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.last(self.activation(self.conv(x)))


def found(activation, opset_version=13):
    options = ExportOptions(opset_version=opset_version)
    captured = capture(
        Followed(activation).eval(), torch.randn(2, 2, 4, 4), options, is_of_interest
    )
    return activation_after(main_nodes(captured, "conv", "Conv2d")[0].outputs[0])


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.LeakyReLU(0.2),
        nn.PReLU(),
        nn.PReLU(3, init=0.3),
        nn.GELU(),
    ],
    ids=str,
)
def test_activation_is_found(activation):
    x = torch.linspace(-9, 9, 96).reshape(2, 3, 4, 4)
    torch.testing.assert_close(found(activation)(x), activation(x).detach())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_opset_20_is_found(approximate):
    x, gelu = torch.linspace(-3, 3, 24).reshape(1, 3, 4, 2), nn.GELU(approximate)
    torch.testing.assert_close(found(gelu, 20)(x), gelu(x))


@pytest.mark.parametrize(
    "other", [nn.Identity(), nn.Hardtanh(0, 5), nn.ELU(), nn.SiLU(), nn.Softmax(1)], ids=str
)
def test_other_functions_are_not_taken_for_one(other):
    assert found(other) is None


class Twice(nn.Module):
    def forward(self, x):
        return torch.relu(x) + x


def test_an_output_with_other_readers_has_none():
    assert found(Twice()) is None


def test_the_end_of_the_graph_has_none():
    model = nn.Sequential(nn.Conv2d(2, 3, 1)).eval()
    options = ExportOptions(opset_version=13)
    captured = capture(model, torch.randn(2, 2, 4, 4), options, is_of_interest)
    assert activation_after(main_nodes(captured, "0", "Conv2d")[0].outputs[0]) is None


def test_what_the_activation_hides_is_not_fitted(tmp_path):
    """Behind a ReLU that is always off nothing can be learnt: nearest rounding is kept."""
    model = small()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    calibrated = start(tmp_path, model, batches_of(model)[0], 2, ada(model, "0", num_bits=4))
    nearest = weights_of(calibrated)["0"]
    with torch.no_grad():
        for batch in batches_of(model):
            calibrated(batch)
    assert torch.equal(weights_of(calibrated)["0"], nearest)
