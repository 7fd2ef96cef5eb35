"""What quantization-aware training must never do again: defects known from other implementations.

Models are a few numbers big, so that what is expected can be worked out by hand.
"""

import copy
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import example
from qat_flow import layers_of, train
from qat_flow import retrain as retrain_in_mode_of_the_float_model
from torch import nn

import amct_pytorch as amct
from amct_pytorch.nn.module.quantization import Conv2dQAT, LinearQAT, MatMulQAT


def retrain(*args, **options):
    flow = retrain_in_mode_of_the_float_model(*args, **options)
    flow.model.train()
    return flow


def record_of(flow):
    """The values in a record file by name, for a model of one layer."""
    values = {}
    for line in Path(flow.record_file).read_text().splitlines():
        if ": " in line:
            name, value = line.strip().split(": ")
            values.setdefault(name, []).append(value.strip('"'))
    return values


def one_linear(weights=((1.0, 0.5), (-0.25, 0.75))):
    model = nn.Sequential(nn.Linear(2, len(weights), bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weights))
    return model.eval()


def with_batches(count):
    def edit(config):
        config["batch_num"] = count

    return edit


def with_clips(maximum, minimum):
    def edit(config):
        for layer in layers_of(config):
            layer["retrain_data_config"] |= {"clip_max": maximum, "clip_min": minimum}

    return edit


def with_learned_scales(channel_wise=True):
    def edit(config):
        for layer in layers_of(config):
            layer["retrain_weight_config"] |= {"algo": "ulq_retrain"}
            if not channel_wise:
                layer["retrain_weight_config"]["channel_wise"] = False

    return edit


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, equal_nan=True, msg=key)


# ---- the record is a function of the present state ----


def test_factors_are_those_of_the_weights_at_save_not_of_the_first_validation(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x)
    flow.model(x)
    flow.model.eval()(x)  # validation
    flow.save()
    assert float(record_of(flow)["scale_w"][0]) == pytest.approx(1.0 / 127)

    with torch.no_grad():
        flow.model[0].sub_module.weight.mul_(3)
        flow.model[0].quant_module.acts_clip_max.fill_(2.54)
        flow.model[0].quant_module.acts_clip_min.fill_(0.0)
    flow.save()
    assert float(record_of(flow)["scale_w"][0]) == pytest.approx(3.0 / 127)
    assert float(record_of(flow)["scale_d"][0]) == pytest.approx(2.54 / 255)
    assert record_of(flow)["offset_d"] == ["-128"]


def test_what_is_saved_after_validating_every_epoch_is_the_last_epoch(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0])
    for epoch in range(3):
        train(flow.model, batches, steps=2, seed=epoch)
        evaluated = flow.model.eval()(batches[0])
    flow.save()
    assert torch.equal(flow.run_fake_quant(batches[0]), evaluated)


# ---- weights learn ----


@pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])
def test_codes_of_a_single_layer_change_under_small_steps(algo):
    torch.manual_seed(0)
    layer = LinearQAT(16, 16, config={"retrain_weight_config": {"weights_retrain_algo": algo}})
    optimizer = torch.optim.SGD([layer.weight], lr=1e-3)
    x, target = torch.randn(64, 16), torch.randn(64, 16)

    def codes():
        return (layer.weight / layer.weight_scale(layer.weight)).round()

    layer(x)
    first = codes()
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x) - target).square().sum(1).mean().backward()
        optimizer.step()
    assert (codes() != first).float().mean() > 0.5


def test_forward_leaves_float_weights_as_they_are():
    layer = Conv2dQAT(2, 3, 3)
    before = layer.weight.detach().clone()
    layer(torch.randn(1, 2, 5, 5))
    layer.eval()(torch.randn(1, 2, 5, 5))
    assert torch.equal(layer.weight, before)


# ---- saving leaves the live model alone ----


def test_saving_changes_no_state_and_no_mode(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], with_learned_scales())
    train(flow.model, batches, steps=2)
    state, modes = state_of(flow.model), [m.training for m in flow.model.modules()]
    modules = [type(m) for m in flow.model.modules()]
    flow.save()
    assert_same_state(state_of(flow.model), state)
    assert [m.training for m in flow.model.modules()] == modes
    assert [type(m) for m in flow.model.modules()] == modules
    assert all(p.requires_grad for p in flow.model.parameters())


def test_training_goes_on_after_saving_as_if_nothing_had_been_saved(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0])
    train(flow.model, batches, steps=2)
    undisturbed = copy.deepcopy(flow.model)
    flow.save()
    assert train(flow.model, batches, steps=3) == train(undisturbed, batches, steps=3)
    flow.save()


def test_failed_save_leaves_the_model_usable(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x, with_batches(2))
    flow.model(x)
    with pytest.raises(RuntimeError, match="has seen 1 of 2"):
        flow.save()
    flow.model.eval()(x)
    flow.save()


# ---- interruption ----


def test_restored_model_evaluates_to_the_same_bits(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], with_learned_scales())
    train(flow.model, batches, steps=3)
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth")
    assert torch.equal(restored.eval()(batches[1]), flow.model.eval()(batches[1]))


def test_restored_model_keeps_clips_that_differ_from_those_its_data_would_give(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x)
    flow.model(x)
    with torch.no_grad():
        flow.model[0].quant_module.acts_clip_max.fill_(3.651)
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth").train()
    restored(x)
    assert restored[0].quant_module.acts_clip_max == torch.tensor(3.651)


@pytest.mark.parametrize("learned", [False, True], ids=["arq", "ulq"])
def test_restored_training_goes_on_with_the_same_losses(tmp_path, learned):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], with_learned_scales() if learned else None)
    train(flow.model, batches, steps=3)
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth")
    assert train(restored, batches, steps=3) == train(flow.model, batches, steps=3)


def test_weight_scales_that_the_optimizer_does_not_train_survive_a_restore(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x, with_learned_scales(channel_wise=False))
    flow.model(x)
    with torch.no_grad():
        flow.model[0].sub_module.weight.mul_(0.5)
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth")
    assert torch.equal(restored.eval()(x), flow.model.eval()(x))


@pytest.mark.parametrize("seen", [1, 2])
def test_restored_in_the_middle_of_the_first_batches_finds_the_same_range(tmp_path, seen):
    batches = [torch.tensor([[0.5, -4.0]]), torch.tensor([[3.0, 0.1]]), torch.tensor([[1.0, 2.0]])]
    flow = retrain(tmp_path, one_linear(), batches[0], with_batches(3))
    for batch in batches[:seen]:
        flow.model(batch)
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth").train()
    for batch in batches[seen:]:
        flow.model(batch)
        restored(batch)
    assert restored[0].progress() is None
    assert_same_state(state_of(restored), state_of(flow.model))
    assert restored[0].quant_module.acts_clip_min.item() == pytest.approx(-4.0, rel=0.05)


# ---- modes ----


def test_saved_from_training_mode_is_the_model_of_evaluation_mode(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0])
    train(flow.model, batches, steps=2)
    from_training = flow.save().fake_quant.SerializeToString(), flow.deploy.SerializeToString()
    flow.model.eval()
    assert flow.save().fake_quant.SerializeToString() == from_training[0]
    assert flow.deploy.SerializeToString() == from_training[1]
    assert not any(node.op_type == "BatchNormalization" for node in flow.fake_quant.graph.node)


@pytest.mark.parametrize("first", ["train", "eval"])
def test_range_is_found_in_the_first_batch_whatever_the_mode(tmp_path, first):
    x = torch.tensor([[1.0, -1.27]])
    flow = retrain(tmp_path, one_linear(), x)
    flow.model.train(first == "train")(x)
    assert flow.model[0].progress() is None
    flow.save()


def test_evaluating_does_not_change_what_is_learned(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], with_learned_scales())
    train(flow.model, batches, steps=2)
    state = state_of(flow.model.eval())
    flow.model(batches[1] * 5)
    with torch.no_grad():
        flow.model(batches[1] * 5)
    assert_same_state(state_of(flow.model), state)


def test_evaluation_without_gradients_builds_no_graph(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x)
    with torch.no_grad():
        assert flow.model.eval()(x).grad_fn is None


# ---- shared inputs ----


class Late(nn.Module):
    """Two layers on one input, registered in the opposite order of their calls."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(2, 2)
        self.first = nn.Linear(2, 2)

    def forward(self, x):
        return self.first(x) - self.second(x)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_layers_share_a_range_whichever_is_called_first(tmp_path, mode):
    x = torch.tensor([[1.0, -1.27], [0.1, 0.2]])
    flow = retrain(tmp_path, Late().eval(), x, with_batches(2))
    flow.model.train(mode == "train")
    flow.model(x)
    flow.model(x)
    names = [name for name in flow.model.state_dict() if "acts_clip_max" in name]
    assert names == ["second.quant_module.acts_clip_max", "second.quant_module.acts_clip_max_pre"]
    flow.save()
    assert torch.equal(flow.run_fake_quant(x), flow.model.eval()(x))
    quantizers = [n for n in flow.deploy.graph.node if n.op_type == "AscendQuant"]
    assert len(quantizers) == 1


def test_an_input_that_two_layers_read_counts_once(tmp_path):
    x = torch.tensor([[1.0, -1.27]])
    flow = retrain(tmp_path, Late().eval(), x, with_batches(2))
    flow.model(x)
    assert {m.progress() for m in (flow.model.first, flow.model.second)} == {(1, 2)}


class Sometimes(Late):
    """Calls its second layer when it is told to, as with layers dropped at random."""

    both = True

    def forward(self, x):
        return self.first(x) - self.second(x) if self.both else self.first(x)


def test_a_reader_that_is_left_out_leaves_nothing_stale_behind(tmp_path):
    x = torch.tensor([[1.0, -1.27]])
    flow = retrain(tmp_path, Sometimes().eval(), x)
    flow.model(x)
    flow.model.both = False
    flow.model(x).sum().backward()
    with torch.no_grad():
        flow.model.second.quant_module.acts_clip_max.fill_(0.5)
    y = flow.model(x)
    y.sum().backward()
    assert torch.equal(y, flow.model(x.clone()))


# ---- learned weight scales, in every layout ----

LAYERS = {
    "Linear": (lambda: nn.Linear(4, 6), (2, 4)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 5)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 5, 5)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3)),
    "grouped Conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5)),
    "grouped ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
}


def rows_of(layer):
    """[Cout, n] of a float layer's weight."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        blocks = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)
        return blocks.flatten(0, 1).flatten(1)
    return weight.flatten(1)


@pytest.mark.parametrize(
    ("kind", "channel_wise"),
    [(kind, wise) for kind in LAYERS for wise in (False, True) if not (wise and kind == "Linear")],
)
def test_learned_weight_scale_has_the_gradient_of_its_channel(tmp_path, kind, channel_wise):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    model, x = nn.Sequential(make()).eval(), torch.randn(shape)
    rows = rows_of(model[0])
    flow = retrain(tmp_path, model, x, with_learned_scales(channel_wise))
    flow.model(x)

    module = flow.model[0].quant_module
    scale = module.wts_scales.detach()
    wanted = rows.abs().amax(1) if channel_wise else rows.abs().max().reshape(1)
    torch.testing.assert_close(scale, wanted / 127, rtol=0.01, atol=0)

    with torch.no_grad():  # some weights beyond the range, none just at its end
        scale = module.wts_scales.mul_(0.8).clone()
    weight = module.replaced_module.weight
    flow.model(x).square().sum().backward()
    # The gradient of the weight is that of the quantized weight: straight through.
    grads = copy.copy(model[0])
    grads.weight = nn.Parameter(weight.grad.clone())
    g, s = rows_of(grads).double(), scale.double().reshape(-1, 1)
    t = rows.double() / s
    d = torch.where(t > 127, 127.0, torch.where(t < -128, -128.0, t.round() - t))
    sums = (g * d).sum(1) if channel_wise else (g * d).sum().reshape(1)
    n = rows.shape[1] if channel_wise else rows.numel()
    expected = sums / math.sqrt(n * 127)
    torch.testing.assert_close(module.wts_scales.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_what_autograd_keeps_goes_through_its_hooks(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x, with_learned_scales(channel_wise=False))
    flow.model(x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        flow.model(x)
    module = flow.model[0].quant_module
    pointers = {t.data_ptr() for t in kept}
    assert {module.wts_scales.data_ptr(), module.weight.data_ptr()} <= pointers
    y = flow.model(x)
    with torch.no_grad():
        module.wts_scales.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- copies ----


def test_parameters_of_a_copy_are_its_own(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0])
    train(flow.model, batches, steps=1)
    averaged = copy.deepcopy(flow.model)
    mine = {p.data_ptr() for p in flow.model.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in averaged.parameters())
    state = state_of(averaged)
    train(flow.model, batches, steps=1)
    assert_same_state(state_of(averaged), state)


def test_no_parameter_is_listed_twice(tmp_path):
    flow = retrain(tmp_path, Late().eval(), torch.randn(2, 2))
    listed = [id(p) for p in flow.model.parameters()]
    assert len(listed) == len(set(listed)) == 6  # two weights, two biases, two clips


def test_whole_model_can_be_pickled(tmp_path):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0])
    train(flow.model, batches, steps=1)
    file = io.BytesIO()
    torch.save(flow.model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded.eval()(batches[1]), flow.model.eval()(batches[1]))
    flow.save(loaded)


# ---- recurrent layers ----


class Recurrent(nn.Module):
    def __init__(self, cls, batch_first=False):
        super().__init__()
        self.rnn = cls(3, 4, batch_first=batch_first)

    def forward(self, x, h):
        state = (h, h) if isinstance(self.rnn_layer, nn.LSTM) else h
        return self.rnn(x, state)[0]

    @property
    def rnn_layer(self):
        return getattr(self.rnn, "sub_module", self.rnn)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_recurrent_weights_learn_over_whole_sequences(tmp_path, cls, batch_first):
    torch.manual_seed(0)
    data = torch.randn((2, 5, 3) if batch_first else (5, 2, 3)), torch.zeros(1, 2, 4)
    flow = retrain(tmp_path, Recurrent(cls, batch_first).eval(), data)
    float_model = copy.deepcopy(flow.float_model)
    y = flow.model.train()(*data)
    torch.testing.assert_close(y, float_model(*data), rtol=0, atol=0.05)
    y.square().sum().backward()
    layer = flow.model.rnn_layer
    assert {name for name, p in layer.named_parameters() if p.grad.abs().max() > 0} == {
        "weight_ih_l0",
        "weight_hh_l0",
        "bias_ih_l0",
        "bias_hh_l0",
    }
    flow.save()
    torch.testing.assert_close(flow.run_fake_quant(*data), flow.model.eval()(*data))


# ---- FORCE_FP16_QUANT ----


def test_half_precision_mode_rounds_the_scale_and_is_recorded(tmp_path):
    x = torch.tensor([[1.0, -1.0]])

    def edit(config):
        config["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
        with_clips(1.0, -1.0)(config)

    flow = retrain(tmp_path, one_linear(), x, edit).save()
    record = record_of(flow)
    assert record["fakequant_precision_mode"] == ["FORCE_FP16_QUANT"]
    scale = torch.tensor(2.0 / 255)
    assert torch.tensor(float(record["scale_d"][0])) == scale.half().float() != scale


# ---- invalid ranges ----


@pytest.mark.parametrize(
    ("maximum", "minimum"),
    [(1.0, 1.0), (1e-9, 0.0), (-1.0, 1.0), (-2.0, -1.0 + 1e-9), (math.nan, -1.0), (math.inf, 0.0)],
    ids=["no width", "1e-9 wide", "inverted", "inverted, negative", "NaN", "infinite"],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_invalid_clips_fall_back_to_the_last_valid_ones(tmp_path, maximum, minimum, mode):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x, with_clips(1.27, -1.28))
    before = flow.model.train()(x)
    before_eval = flow.model.eval()(x)
    module = flow.model[0].quant_module
    with torch.no_grad():
        module.acts_clip_max.fill_(maximum)
        module.acts_clip_min.fill_(minimum)
    after = flow.model.train(mode == "train")(x)
    assert torch.equal(after, before if mode == "train" else before_eval)
    flow.save()
    assert float(record_of(flow)["scale_d"][0]) == pytest.approx(0.01)
    if mode == "train":  # where the parameters are repaired
        assert module.acts_clip_max == torch.tensor(1.27)
        assert module.acts_clip_min == torch.tensor(-1.28)


@pytest.mark.parametrize(
    ("maximum", "minimum", "used"),
    [(0.5, 0.25, (0.5, 0.0)), (-0.25, -0.5, (0.0, -0.5))],
    ids=["positive", "negative"],
)
def test_clips_on_one_side_of_zero_are_widened_to_it(tmp_path, maximum, minimum, used):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x, with_clips(1.27, -1.28))
    module = flow.model[0].quant_module
    with torch.no_grad():
        module.acts_clip_max.fill_(maximum)
        module.acts_clip_min.fill_(minimum)
    flow.model(x)
    assert (module.acts_clip_max.item(), module.acts_clip_min.item()) == used


def test_fixed_min_stays_zero_whatever_the_optimizer_does(tmp_path):
    x = torch.tensor([[1.0, 0.5]])

    def edit(config):
        for layer in layers_of(config):
            layer["retrain_data_config"]["fixed_min"] = True

    flow = retrain(tmp_path, one_linear(), x, edit)
    module = flow.model[0].quant_module
    flow.model(x).sum().backward()
    assert module.acts_clip_min.grad.item() == 0
    with torch.no_grad():  # momentum or weight decay
        module.acts_clip_min.fill_(-0.7)
    flow.save()
    assert record_of(flow)["offset_d"] == ["-128"]
    flow.model(x)
    assert module.acts_clip_min.item() == 0


# ---- errors leave nothing locked ----


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_that_cannot_be_used_is_reported_and_the_next_one_counts(tmp_path, mode):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x)
    flow.model.train(mode == "train")
    with pytest.raises(RuntimeError, match="0: no range can be found"):
        flow.model(torch.tensor([[math.nan, 1.0]]))
    flow.model(x)
    flow.save()
    assert torch.isfinite(flow.model(x)).all()


# ---- nothing grows while a model trains ----


def test_training_of_a_single_layer_accumulates_nothing(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flow = retrain(tmp_path, one_linear(), x)

    def size():
        file = io.BytesIO()
        torch.save(flow.model, file)
        return len(file.getvalue())

    train(flow.model, [x], steps=1)
    before = size()
    train(flow.model, [x], steps=20)
    assert size() == before


# ---- the matrix product ----


def test_copy_of_a_matrix_product_is_independent():
    product = MatMulQAT()
    product(torch.eye(2), torch.ones(2, 2))
    other = copy.deepcopy(product)
    state = state_of(product)
    other(torch.eye(2), torch.ones(2, 2)).sum().backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    other.eval()(torch.eye(2), torch.ones(2, 2))
    assert_same_state(state_of(product), state)


def test_both_inputs_of_a_matrix_product_find_their_own_range():
    product = MatMulQAT(config={"retrain_data_config": {"batch_num": 2}})
    small, large = torch.eye(2), 100 * torch.ones(2, 2)
    product(small, large)
    product(small, large)
    assert product.x1_clip_max.item() == pytest.approx(1.0, rel=0.05)
    assert product.x2_clip_max.item() == pytest.approx(100.0, rel=0.05)


def test_buffers_of_a_matrix_product_are_converted_with_it():
    product = MatMulQAT().to(torch.device("meta"))
    assert {t.device.type for t in product.state_dict().values()} == {"meta"}


# ---- layers that share their weight ----


def test_layers_with_one_weight_are_left_float(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)
            self.b.weight = self.a.weight
            self.c = nn.Conv1d(2, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    x = torch.randn(1, 2, 4)
    flow = retrain(tmp_path, Tied().eval(), x)
    config = json.loads(Path(flow.config_file).read_text())
    assert [name for name, value in config.items() if isinstance(value, dict)] == ["c"]


# ---- nothing is kept between calls and models ----


def test_incomplete_configuration_is_refused_whatever_was_created_before(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    proto = tmp_path / "simplified.cfg"
    proto.write_text("batch_num: 1\n")
    flow = retrain(tmp_path, one_linear(), x, config_defination=str(proto))
    config = json.loads(Path(flow.config_file).read_text())
    del config["version"]
    Path(flow.config_file).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="version"):
        flow.create()


def test_models_of_two_configurations_are_trained_and_saved_in_turn(tmp_path):
    x = torch.tensor([[1.0, -1.0]])
    flows = []
    for name, clips in (("a", (1.0, -1.0)), ("b", (2.0, -2.0))):
        (tmp_path / name).mkdir()
        flows.append(retrain(tmp_path / name, one_linear(), x, with_clips(*clips)))
    for flow, clip in zip(flows, (1.0, 2.0), strict=True):
        flow.model(x)
        flow.save()
        assert float(record_of(flow)["scale_d"][0]) == pytest.approx(2 * clip / 255)
        assert torch.equal(flow.run_fake_quant(x), flow.model.eval()(x))


def test_another_process_can_restore_and_save(tmp_path):
    model, batches = example("volume")
    flow = retrain(tmp_path, model, batches[0])
    train(flow.model, batches, steps=2)
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    flow.save()
    here = flow.fake_quant.SerializeToString(), Path(flow.record_file).read_text()
    script = f"""
import amct_pytorch as amct
from models import example
model, batches = example("volume")
files = {flow.config_file!r}, model, {flow.record_file!r}, batches[0]
model = amct.restore_quant_retrain_model(*files, {str(tmp_path / "state.pth")!r})
files = {flow.config_file!r}, model, {flow.record_file!r}, {str(tmp_path / "out")!r}
amct.save_quant_retrain_model(*files, batches[0])
"""
    root = Path(__file__).parent
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={"PYTHONPATH": f"{Path(amct.__file__).parent.parent}:{root}"},
    )
    assert (flow.fake_quant.SerializeToString(), Path(flow.record_file).read_text()) == here


# ---- BatchNorm with negative gain ----


def test_largest_weight_survives_a_batchnorm_that_turns_its_sign(tmp_path):
    """A weight of -1 would have code -128; its sign turned, +128 saturates to 127: 0.992."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
        model[1].weight.fill_(-1.0)
    x = torch.ones(1, 1, 1, 1)
    flow = retrain(tmp_path, model, x, with_clips(1.0, -1.0))
    flow.model[0].bn_module.eval()
    assert flow.model(x).item() == pytest.approx(1.0, abs=0.005)
    assert flow.model.eval()(x).item() == pytest.approx(1.0, abs=0.005)
    flow.save()
    assert flow.run_fake_quant(x).item() == flow.model(x).item()


def test_training_sees_the_codes_that_a_batchnorm_of_negative_gain_exports(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-2.0, -1, -0.5, -0.1, 0.1, 0.5, 1, 2]))
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 6, 6)
    flow = retrain(tmp_path, model, x)
    flow.model(x)
    frozen = flow.model.train()
    frozen[0].bn_module.eval()
    trained = frozen(x)
    evaluated = flow.model.eval()(x)
    step = evaluated.abs().max() / 1000  # far below what one saturated code makes
    assert (trained - evaluated).abs().max() < step


def test_4_bit_activations_are_refused_before_training_where_they_have_no_form(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2, bias=False)).eval()
    data, config = torch.randn(2, 3, 4), str(tmp_path / "config.json")
    amct.create_quant_retrain_config(config, model, data)
    document = json.loads((tmp_path / "config.json").read_text())
    for layer in ("0", "1"):
        document[layer]["retrain_data_config"]["dst_type"] = "INT4"
        document[layer]["retrain_weight_config"]["dst_type"] = "INT4"
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(
        ValueError, match='^[^\n]*: 0.*got "INT4": .*the bias is an addition[^\n]*$'
    ):
        amct.create_quant_retrain_model(config, model, str(tmp_path / "record.txt"), data)
