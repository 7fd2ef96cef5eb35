"""Training of quantized models: what a step costs, gradients, and how models are trained."""

import copy
import io
from collections import Counter

import pytest
import qat_processes
import torch
import torch.nn.functional as F  # noqa: N812
from models import example
from qat_flow import layers_of, retrain, train
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

ALGOS = pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])


def edited(algo="arq_retrain", **top):
    def edit(config):
        for layer in layers_of(config):
            layer["retrain_weight_config"]["algo"] = algo
        config |= top

    return edit


def started(folder, name="digits", algo="arq_retrain", steps=2, **top):
    """A model in training whose ranges are found, and batches."""
    model, batches = example(name)
    flow = retrain(folder, model, batches[0], edited(algo, **top))
    train(flow.model, batches, steps)
    return flow, batches


# ---- no value is read on the host ----


def host_reads(function):
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    names = Counter(event.name for event in record.events())
    assert names["amct_pytorch::ulq"] > 0
    return {n: names[n] for n in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")}


NONE = {"aten::_local_scalar_dense": 0, "aten::is_nonzero": 0, "aten::item": 0}


@ALGOS
@pytest.mark.parametrize("name", ["digits", "sequence", "volume"])
def test_training_step_reads_nothing_on_the_host(tmp_path, name, algo):
    """BatchNorms, shared inputs (digits), every convolution and both kinds of weights."""
    flow, batches = started(tmp_path, name, algo)
    optimizer = torch.optim.SGD(flow.model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        flow.model(batches[0]).square().mean().backward()
        optimizer.step()

    step()
    assert host_reads(step) == NONE


def test_range_of_the_configuration_is_never_read_on_the_host(tmp_path):
    model, batches = example("digits")

    def edit(config):
        for layer in layers_of(config):
            layer["retrain_data_config"] |= {"clip_max": 1.0, "clip_min": -1.0}

    flow = retrain(tmp_path, model, batches[0], edit)
    assert host_reads(lambda: flow.model.train()(batches[0]).sum().backward()) == NONE


@pytest.mark.parametrize("shift_n", [False, True])
def test_evaluation_reads_nothing_on_the_host(tmp_path, shift_n):
    flow, batches = started(tmp_path, shift_n=shift_n)
    flow.model.eval()
    with profile(activities=[ProfilerActivity.CPU]) as record, torch.no_grad():
        flow.model(batches[0])
    assert not {e.name for e in record.events()} & NONE.keys()


# ---- gradients ----


def rounded(x, x32):
    """x, straight through the rounding of its float32 value: on one side of a tie as computed."""
    return x + (x32.round() - x32).double().detach()


def reference(x, layer, clip_max, clip_min, scale_w, fixed_min=False):
    """Output of a layer with learned quantizers in float64, by autograd and detach() alone.

    The range is widened to nothing here: clip_max > 0 > clip_min. The zero point is a constant,
    and in the gradient of a clip the rounding error of a clamped input is that of the clip.
    """
    one, two = clip_max.detach().float(), clip_min.detach().float()
    two = torch.zeros(()) if fixed_min else two
    s32 = (one - two) / 255
    offset = (-128 - two / s32).round().double()
    low = clip_min.detach() * 0 if fixed_min else clip_min
    scale = (clip_max - low) / 255
    above = x.detach() > s32.double() * (127 - offset)
    below = x.detach() < s32.double() * (-128 - offset)
    v = torch.where(above, clip_max, torch.where(below, low, x))
    v32 = v.detach().float()
    value = rounded(v / scale, v32 / s32) * scale  # on the grid, straight through
    # What the formulas are for: the value of a clamped input is an end of the grid.
    codes = (x.detach().float() / s32 + offset.float()).round().clamp(-128, 127) - offset.float()
    x_q = value + (codes * s32).double().detach() - value.detach()

    weight = layer.weight.detach().double().requires_grad_()
    w32, sw32 = layer.weight.detach(), scale_w.detach().float()
    n, qmax = layer.weight.numel() // sw32.numel(), 127.0
    shape = (-1, *[1] * (w32.dim() - 1))
    sw, sw32 = scale_w.reshape(shape), sw32.reshape(shape)
    t = weight.detach() / sw
    t = torch.where(
        w32 > sw32 * qmax,
        qmax + 0 * sw,
        torch.where(w32 < sw32 * -128, -128 + 0 * sw, rounded(t, w32 / sw32)),
    )
    learned = t * sw
    codes = (w32 / sw32).round().clamp(-128, 127)
    shrink = 1 / (n * qmax) ** 0.5
    learned = learned * shrink + (learned * (1 - shrink)).detach()  # d/ds by 1 / sqrt(n qmax)
    w_q = weight + learned - learned.detach() + (codes * sw32).double() - weight.detach()
    return x_q, w_q, weight


CASES = {
    "random": lambda shape: torch.randn(shape) * 0.7,
    "ties": lambda shape: (torch.randint(-300, 300, shape) + 0.5) / 128,
    "on the grid": lambda shape: torch.randint(-300, 300, shape) / 128.0,
}


@pytest.mark.parametrize("fixed_min", [False, True], ids=["both ends", "fixed_min"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
def test_gradients_of_every_learned_tensor(tmp_path, kind, case, fixed_min):
    """Inputs in multiples of 1/128 under scale 1/128 (clips 255/256 and -1): all ties are exact."""
    torch.manual_seed(0)
    make = {"Linear": lambda: nn.Linear(6, 4), "Conv2d": lambda: nn.Conv2d(3, 4, 2)}[kind]
    x = CASES[case]((32, 6) if kind == "Linear" else (8, 3, 4, 4)).requires_grad_()

    def edit(config):
        clips = {"clip_max": 127 / 128, "clip_min": -1.0, "fixed_min": fixed_min}
        config["0"]["retrain_data_config"] |= clips
        config["0"]["retrain_weight_config"]["algo"] = "ulq_retrain"

    flow = retrain(tmp_path, nn.Sequential(make()).eval(), x.detach(), edit)
    module = flow.model.train()[0].quant_module
    flow.model(x)
    with torch.no_grad():
        module.wts_scales.mul_(0.75)
    y = flow.model(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)

    wide = x.detach().double().requires_grad_()
    maximum = torch.tensor(127 / 128, dtype=torch.float64, requires_grad=True)
    minimum = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    scales = module.wts_scales.detach().double().requires_grad_()
    layer = module.replaced_module
    x_q, w_q, weight = reference(wide, layer, maximum, minimum, scales, fixed_min)
    bias = layer.bias.detach().double().requires_grad_()
    run = F.linear if kind == "Linear" else F.conv2d
    wanted = run(x_q, w_q, bias)
    wanted.backward(upstream.double())

    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(y.double(), wanted, **close)
    torch.testing.assert_close(x.grad.double(), wide.grad, **close)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, **close)
    torch.testing.assert_close(layer.bias.grad.double(), bias.grad, **close)
    torch.testing.assert_close(module.wts_scales.grad.double(), scales.grad, **close)
    torch.testing.assert_close(module.acts_clip_max.grad.double(), maximum.grad, **close)
    of_minimum = torch.zeros((), dtype=torch.float64) if fixed_min else minimum.grad
    torch.testing.assert_close(module.acts_clip_min.grad.double(), of_minimum, **close)


@ALGOS
@pytest.mark.parametrize("name", ["digits", "sequence", "volume"])
def test_evaluation_with_gradients_has_the_same_output(tmp_path, name, algo):
    flow, batches = started(tmp_path, name, algo)
    flow.model.eval()
    with torch.no_grad():
        wanted = flow.model(batches[1])
    y = flow.model(batches[1])
    assert torch.equal(y, wanted)
    flow.model.zero_grad()
    y.square().sum().backward()
    assert all(p.grad is not None for p in flow.model.parameters())


def test_evaluation_with_gradients_has_the_gradients_of_training(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(5, 4)
    flow = retrain(tmp_path, model, x)
    grads = []
    for mode in (True, False):
        flow.model.zero_grad()
        flow.model.train(mode)(x).sum().backward()
        grads.append([p.grad.clone() for p in flow.model.parameters()])
    assert len(grads[0]) == 4
    for trained, evaluated in zip(*grads, strict=True):
        assert torch.equal(trained, evaluated)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_frozen_parameters_get_no_gradient(tmp_path, mode):
    flow, batches = started(tmp_path, algo="ulq_retrain")
    flow.model.train(mode == "train").requires_grad_(False)
    flow.model.fc.quant_module.acts_clip_max.requires_grad_(True)
    flow.model.zero_grad()
    flow.model(batches[0]).sum().backward()
    assert [n for n, p in flow.model.named_parameters() if p.grad is not None] == [
        "fc.quant_module.acts_clip_max"
    ]


# ---- ways to train ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ALGOS
def test_training_under_autocast(tmp_path, dtype, algo):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], edited(algo))
    optimizer = torch.optim.SGD(flow.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            y = flow.model.train()(batches[0])
        loss = (y.float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert y.dtype == dtype
    assert losses[-1] < losses[0]
    assert all(
        p.grad.isfinite().all() and p.dtype == torch.float32 for p in flow.model.parameters()
    )
    flow.save()
    assert torch.equal(flow.run_fake_quant(batches[1]), flow.model.eval()(batches[1]))


def test_evaluation_under_autocast_is_that_without(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    x = torch.randn(2, 2, 6, 6)
    flow = retrain(tmp_path, model, x)
    wanted = flow.model(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow.model(x), wanted)


@pytest.mark.parametrize("found", [True, False], ids=["ranges found", "before the ranges"])
@ALGOS
def test_compiled_training_has_the_same_losses(tmp_path, algo, found):
    torch._dynamo.reset()
    model, batches = example("volume")
    flow = retrain(tmp_path, model, batches[0], edited(algo, batch_num=2))
    if found:
        train(flow.model, batches, steps=2)
    other = copy.deepcopy(flow.model)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert train(compiled, batches, 4) == pytest.approx(train(flow.model, batches, 4), rel=1e-5)
    for mine, theirs in zip(flow.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        evaluated = compiled.eval()(batches[0])
    torch.testing.assert_close(evaluated, other.eval()(batches[0]), rtol=1e-5, atol=1e-6)


def test_layers_that_share_an_input_compile(tmp_path):
    torch._dynamo.reset()
    flow, batches = started(tmp_path)
    other = copy.deepcopy(flow.model)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert train(compiled, batches, 2) == pytest.approx(train(flow.model, batches, 2), rel=1e-5)


class Checkpointed(nn.Module):
    """Two convolutions on one input and one behind them, which may be computed twice."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
        self.last = nn.Conv2d(3, 2, 3)
        self.reentrant = None

    def body(self, x):
        return self.last(torch.relu(self.left(x) + self.right(x)))

    def forward(self, x):
        if self.reentrant is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("batch_num", [1, 3])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@ALGOS
def test_gradient_checkpointing_changes_nothing(tmp_path, algo, reentrant, batch_num):
    torch.manual_seed(0)
    batches = [torch.randn(2, 2, 7, 7).requires_grad_() for _ in range(4)]
    edit = edited(algo, batch_num=batch_num)
    flow = retrain(tmp_path, Checkpointed().eval(), batches[0].detach(), edit)
    other = copy.deepcopy(flow.model)
    other.reentrant = reentrant
    wanted = train(flow.model, batches, steps=4)
    assert train(other, batches, steps=4) == pytest.approx(wanted, rel=1e-5)
    for mine, theirs in zip(flow.model.parameters(), other.parameters(), strict=True):
        # The layers that share an input add up their gradients in another order.
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-7)
    assert other.left.progress() is None


def test_accumulated_gradients_are_those_of_all_batches(tmp_path):
    flow, batches = started(tmp_path)
    flow.model.eval()  # batch statistics aside
    flow.model.zero_grad()
    for x in batches:
        flow.model(x).sum().backward()
    accumulated = [p.grad.clone() for p in flow.model.parameters()]
    flow.model.zero_grad()
    sum(flow.model(x).sum() for x in batches).backward()
    for one, both in zip(accumulated, flow.model.parameters(), strict=True):
        torch.testing.assert_close(one, both.grad, rtol=1e-4, atol=1e-5)


# ---- averages and copies ----


@pytest.mark.parametrize("buffers", [False, True], ids=["parameters only", "with buffers"])
@ALGOS
def test_averaged_model_evaluates_with_averaged_parameters(tmp_path, algo, buffers):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], edited(algo, batch_num=2))
    average = AveragedModel(flow.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=buffers)
    for seed in range(4):
        train(flow.model, batches, steps=1, seed=seed)
        average.update_parameters(flow.model)
    clips = {n: p.clone() for n, p in average.module.named_parameters() if "acts_clip" in n}
    average.eval()(batches[0])
    after = dict(average.module.named_parameters())
    assert all(torch.equal(after[name], clip) for name, clip in clips.items())
    name = "fc.quant_module.acts_clip_max"
    mine = dict(flow.model.named_parameters())[name]
    assert clips[name] != mine  # an average, not a copy
    flow.save(average.module)
    y = average.module.eval()(batches[0])
    assert torch.equal(flow.run_fake_quant(batches[0]), y)


def test_average_of_one_model_is_the_model(tmp_path):
    flow, batches = started(tmp_path, algo="ulq_retrain")
    average = AveragedModel(flow.model, use_buffers=True)
    average.update_parameters(flow.model)
    assert torch.equal(average.eval()(batches[0]), flow.model.eval()(batches[0]))


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_copies_and_pickles_go_on_as_the_model_does(tmp_path, seen):
    model, batches = example("digits")
    flow = retrain(tmp_path, model, batches[0], edited("ulq_retrain", batch_num=2))
    train(flow.model, batches, steps=seen)
    file = io.BytesIO()
    torch.save(flow.model, file)
    file.seek(0)
    others = copy.deepcopy(flow.model), torch.load(file, weights_only=False)
    wanted = train(flow.model, batches, steps=3)
    for other in others:
        assert train(other, batches, steps=3) == wanted


# ---- several processes ----


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes found, by rank; a process that hangs is ended."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.get_context("spawn")
    running = [
        context.Process(target=qat_processes.work, args=(rank, 2, folder)) for rank in range(2)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    for process in running:
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in running] == [0, 0]
    return [torch.load(folder / str(rank) / "found.pt", weights_only=False) for rank in range(2)]


def test_first_ranges_are_those_of_one_process_on_all_data(tmp_path, processes):
    every = [qat_processes.data_of(rank) for rank in range(2)]
    together = [torch.cat(batches) for batches in zip(*every, strict=True)]
    edit = qat_processes.learned_scales
    flow = retrain(tmp_path, qat_processes.small_model(), together[0], edit)
    for x in together[: qat_processes.BATCHES]:
        flow.model.train()(x)
    wanted = qat_processes.ranges_of(flow.model)
    for found in processes:
        for name in ("0.quant_module.acts_clip_max", "0.quant_module.acts_clip_min"):
            assert found["first ranges"][name] == wanted[name]
        assert found["gathers for the first ranges"] == 2  # one for each range


def test_processes_agree_after_steps(processes):
    first, second = (found["parameters"] for found in processes)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_step_has_the_collectives_of_a_float_model(processes):
    for found in processes:
        assert found["gathers"] == 2
        assert found["collectives"].keys() == found["collectives of plain"].keys()
        # One bucket of gradients, one broadcast of buffers, which a plain model does not have.
        assert found["collectives"]["c10d::allreduce_"] == 1


def test_evaluation_needs_no_other_process(processes):
    found = processes[0]
    assert not found["collectives in evaluation"]
    assert torch.equal(found["saved"], found["evaluated"])


def test_evaluation_before_training_does_not_count_in_several_processes(processes):
    assert {found["progress after evaluation"] for found in processes} == {(0, 2)}
