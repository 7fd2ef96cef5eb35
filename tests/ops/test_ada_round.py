"""ada_round, its start and regulariser, ada_scale: values, gradients, groups, graphs, errors."""

import numpy as np
import pytest
import reference_adaround as reference
import torch
from layouts import LAYOUTS
from learnt import GROUPED, assert_no_host_reads, permuted

from amct_pytorch.ops import ada_round, ada_round_start, ada_round_undecided, ada_scale, arq

NAN = float("nan")
ops = torch.ops.amct_pytorch


def shaped(scale, weight, axis):
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = -1
    return scale.reshape(shape)


# ---- soft and hard rounding ----


def test_values_by_hand(device):
    """Steps of 0.5: 0.3 lies between 0 and 0.5; two bits reach from -1 to 0.5."""
    weight = torch.tensor([0.3, 0.3, 0.3, -0.3, 9.0, -9.0, 0.3], device=device)
    alpha = torch.tensor([-9.0, 9.0, 0.0, 0.0, 0.0, 0.0, NAN], device=device)
    scale = torch.tensor(0.5, device=device)
    got = ada_round(weight, alpha, scale, 2)
    assert str(got.tolist()) == "[0.0, 0.5, 0.25, -0.25, 0.5, -1.0, nan]"
    got = ada_round(weight, alpha, scale, 2, hard=True)
    assert got.tolist() == [0.0, 0.5, 0.5, 0.0, 0.5, -1.0, 0.0]  # halfway goes up


@pytest.mark.parametrize("axis", [None, 0, 1, -1], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_bits", [4, 8])
def test_every_layout_follows_the_formula(num_bits, layout, axis, device):
    weight = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(device))
    alpha = torch.randn(weight.shape) * 3
    scale = torch.rand([] if axis is None else weight.size(axis)) * 0.3 + 0.02
    got = ada_round(weight, alpha.to(device), scale.to(device), num_bits, axis)
    w, s = weight.cpu().numpy(), shaped(scale, weight, axis).numpy()
    want = reference.soft(w, alpha.numpy(), s, num_bits)
    np.testing.assert_allclose(got.cpu().numpy(), want, rtol=2e-6, atol=2e-7)
    assert got.stride() == torch.empty_like(weight).stride()


@pytest.mark.parametrize(("shape", "groups"), GROUPED, ids=str)
def test_groups_are_those_of_a_permuted_copy(shape, groups, device):
    weight, alpha, grad = (torch.randn(shape, device=device) for _ in range(3))
    scale = (torch.rand(groups * shape[1]) * 0.3 + 0.05).to(device)
    got = ada_round(weight, alpha, scale, 4, 1, groups=groups)
    got_grad = ops.ada_round_backward(grad, weight, alpha, scale, 4, 1, groups)
    got_start = ada_round_start(weight, scale, 1, groups=groups)
    weight, alpha, grad = (permuted(t, groups).contiguous() for t in (weight, alpha, grad))
    assert torch.equal(permuted(got, groups), ada_round(weight, alpha, scale, 4, 0))
    want = ops.ada_round_backward(grad, weight, alpha, scale, 4, 0, 1)
    assert torch.equal(permuted(got_grad, groups), want)
    assert torch.equal(permuted(got_start, groups), ada_round_start(weight, scale, 0))


def test_the_start_is_the_weight_itself(device):
    weight = torch.linspace(-1.9, 1.9, 777, device=device)
    scale = torch.tensor(0.25, device=device)
    alpha = ada_round_start(weight, scale)
    torch.testing.assert_close(ada_round(weight, alpha, scale, 4), weight.clamp(-2, 1.75))
    hard = ada_round(weight, alpha, scale, 8, hard=True)
    assert torch.equal(hard, torch.floor(weight / scale + 0.5) * scale)


def test_start_by_hand(device):
    """frac 0: -ln(1.2 / 0.1 - 1) = -ln 11; frac 1/2: 0."""
    weight = torch.tensor([0.0, 1.0, 0.25, -0.75], device=device)
    alpha = ada_round_start(weight, torch.tensor(0.5, device=device))
    np.testing.assert_allclose(alpha.tolist(), [-np.log(11), -np.log(11), 0, 0], atol=1e-6)


# ---- gradients ----


def test_gradient_by_hand(device):
    """At alpha = 0 the slope is 1.2 / 4 = 0.3; none where h or the code is clamped."""
    weight = torch.tensor([0.3, 0.3, 0.3, 9.0, -9.0], device=device, requires_grad=True)
    alpha = torch.tensor([0.0, 9.0, -9.0, 0.0, 0.0], device=device, requires_grad=True)
    scale = torch.tensor(0.5, device=device, requires_grad=True)
    ada_round(weight, alpha, scale, 2).backward(torch.full_like(weight, 2.0))
    np.testing.assert_allclose(alpha.grad.tolist(), [2 * 0.5 * 0.3, 0, 0, 0, 0], rtol=1e-6)
    assert weight.grad is None
    assert scale.grad is None


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_that_of_the_formula(layout, axis, device):
    weight = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(device))
    alpha = torch.randn(weight.shape) * 2
    scale = torch.rand([] if axis is None else weight.size(axis)) * 0.3 + 0.02
    grad = torch.randn(weight.shape)
    learnt = alpha.clone().to(device).detach().requires_grad_()
    ada_round(weight, learnt, scale.to(device), 4, axis).backward(grad.to(device))

    exact = alpha.double().requires_grad_()
    s = shaped(scale, weight, axis)
    h = (1.2 * torch.sigmoid(exact) - 0.1).clamp(0, 1)
    y = (torch.floor(weight.cpu() / s).double() + h).clamp(-8, 7) * s
    y.backward(grad.double())
    torch.testing.assert_close(learnt.grad.cpu(), exact.grad.float(), rtol=1e-5, atol=1e-6)


def test_hard_rounding_has_no_gradient(device):
    alpha = torch.zeros(3, device=device, requires_grad=True)
    y = ada_round(torch.ones(3, device=device), alpha, torch.tensor(0.3, device=device), hard=True)
    assert torch.autograd.grad(y.sum(), alpha, allow_unused=True) == (None,)


def test_there_is_no_second_derivative():
    alpha = torch.zeros(3, requires_grad=True)
    y = ada_round(torch.ones(3), alpha, torch.tensor(0.3))
    for value in ((y**2).sum(), ada_round_undecided(alpha - 0.5, 3.0)):
        (grad,) = torch.autograd.grad(value, alpha, create_graph=True, retain_graph=True)
        with pytest.raises(NotImplementedError, match="differentiable once"):
            torch.autograd.grad(grad.sum(), alpha)


# ---- the regulariser ----


@pytest.mark.parametrize("beta", [20.0, 2.0, 1.0])
def test_undecided_follows_the_formula(beta, with_threads, device):
    alpha = torch.randn(70, 900) * 2
    learnt = alpha.clone().to(device).detach().requires_grad_()
    results = with_threads(lambda: ada_round_undecided(learnt, beta))
    assert all(torch.equal(result, results[0]) for result in results)
    want = reference.undecided(alpha.numpy(), beta)
    assert results[0].item() == pytest.approx(want, rel=1e-5)
    (3 * results[0]).backward()

    exact = alpha.double().requires_grad_()
    h = (1.2 * torch.sigmoid(exact) - 0.1).clamp(0, 1)
    (3 * (1 - (2 * h - 1).abs() ** beta).sum()).backward()
    torch.testing.assert_close(learnt.grad.cpu(), exact.grad.float(), rtol=1e-3, atol=1e-4)


def test_halfway_has_no_slope(device):
    """|2h - 1|^beta has a corner there for beta <= 1: neither side is better."""
    alpha = torch.zeros(2, device=device, requires_grad=True)
    total = ada_round_undecided(alpha, 0.5)
    assert total.item() == 2.0
    total.backward()
    assert alpha.grad.tolist() == [0.0, 0.0]


# ---- the scale ----


def test_scale_by_hand():
    """Two values at either end leave nothing to clip: 1 / 2^7. None: no range, so 1."""
    weight = torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1e-7, 0.0, 0.0]])
    assert ada_scale(weight, axis=0).tolist() == [1 / 128, 1.0, 1.0]
    assert ada_scale(weight).item() == 1 / 128
    assert ada_scale(weight[:, :0]).item() == 1.0
    assert ada_scale(weight[:, :0], axis=0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(9,), (40,), (576,), (5000,), (90000,)], ids=str)
@pytest.mark.parametrize("make", ["normal", "heavy", "uniform", "sparse"])
def test_8_bit_scale_is_that_of_the_divergence(make, shape):
    torch.manual_seed(0)
    rows = torch.randn(6, *shape)
    rows = {
        "normal": rows,
        "heavy": rows**3,
        "uniform": torch.rand(6, *shape) - 0.3,
        "sparse": rows * (torch.rand(6, *shape) < 0.1),
    }[make]
    want = [reference.kl_scale(row.numpy(), 8) for row in rows]
    assert ada_scale(rows, axis=0).tolist() == want
    assert ada_scale(rows.transpose(0, 1), axis=1).tolist() == want
    assert ada_scale(rows).item() == reference.kl_scale(rows.numpy(), 8)


def test_8_bit_scale_clips_little():
    """19 of 256 parts at most, and that of some normal rows."""
    torch.manual_seed(0)
    weight = torch.randn(16, 4000)
    kept = ada_scale(weight, axis=0) * 128 / weight.abs().amax(1)
    assert kept.min() < 1
    assert kept.min() >= 1 - 19 / 256


def error_of(weight, scale, num_bits):
    half = 2 ** (num_bits - 1)
    codes = torch.round(weight / scale[:, None]).clamp(-half, half - 1)
    return ((codes * scale[:, None] - weight) ** 2).sum(1)


@pytest.mark.parametrize("num_bits", [2, 4, 6, 7])
def test_scale_of_few_bits_has_the_least_error(num_bits):
    torch.manual_seed(0)
    weight = torch.randn(5, 300)
    whole, _ = arq(weight, num_bits, 0)
    candidates = [whole * (percent / 100) for percent in range(30, 101)]
    errors = torch.stack([error_of(weight, scale, num_bits) for scale in candidates])
    got = error_of(weight, ada_scale(weight, num_bits, 0), num_bits)
    torch.testing.assert_close(got, errors.amin(0), rtol=1e-5, atol=0)
    assert (got < error_of(weight, whole, num_bits)).all() or num_bits > 4


def test_scale_does_not_depend_on_threads_or_dtype(with_threads, device):
    weight = (torch.randn(30, 200) * 0.1).half().to(device)
    for num_bits in (4, 8):
        results = with_threads(lambda bits=num_bits: ada_scale(weight, bits, 0))
        assert all(torch.equal(result, results[0]) for result in results)
        assert torch.equal(ada_scale(weight.float(), num_bits, 0), results[0])


# ---- registration, graphs, errors ----


@pytest.mark.parametrize(("axis", "groups"), [(None, 1), (0, 1), (-2, 1), (1, 2)])
def test_registration(axis, groups, device):
    whole = torch.randn(4, 6, 5, device=device)
    for weight in (whole, whole[:, ::2], whole.transpose(1, 2)):
        channels = [] if axis is None else groups * weight.size(axis)
        scale = torch.rand(channels, device=device) + 0.1
        alpha = torch.randn(weight.shape, device=device)
        learnt = alpha.clone().requires_grad_()
        for hard in (False, True):
            value = alpha if hard else learnt
            options = (weight, value, scale, 8, axis, groups, hard)
            torch.library.opcheck(ops.ada_round.default, options)
        backward = (weight, weight, alpha, scale, 8, axis, groups)
        torch.library.opcheck(ops.ada_round_backward.default, backward)
        torch.library.opcheck(ops.ada_round_start.default, (weight, scale, axis, groups))
        torch.library.opcheck(ops.ada_round_undecided.default, (learnt, 2.0))
        one = torch.ones([], device=device)
        torch.library.opcheck(ops.ada_round_undecided_backward.default, (one, alpha, 2.0))
        if groups == 1:
            torch.library.opcheck(ops.ada_scale.default, (weight, 4, axis))


def test_compiled_graph_has_the_bits_of_eager(device):
    weight = torch.linspace(-3, 2, 600, device=device).reshape(4, 6, 25)
    scale = torch.full([12], 0.3, device=device)

    def step(alpha):
        soft = ada_round(weight, alpha * 2, scale, 4, 1, groups=2)
        return (soft**2).sum() + ada_round_undecided(alpha, 2.0)

    grads = []
    for function in (step, torch.compile(step, fullgraph=True)):
        alpha = torch.linspace(-2, 2, 600, device=device).reshape(4, 6, 25).requires_grad_()
        function(alpha).backward()
        grads.append(alpha.grad)
    assert torch.equal(*grads)


def test_nothing_is_read_on_the_host(device):
    weight, scale = torch.randn(4, 6, 5, device=device), torch.ones(12, device=device)
    alpha = torch.zeros_like(weight).requires_grad_()

    def step():
        soft = ada_round(weight, alpha, scale, 8, 1, groups=2)
        (soft.sum() + ada_round_undecided(alpha, 2.0)).backward()

    assert_no_host_reads(step)


def test_wrong_arguments():
    one, three = torch.tensor(1.0), torch.ones(3)
    with pytest.raises(TypeError, match=r"^weight: expected dtype float32, got float16"):
        ada_round(three.half(), three, one)
    with pytest.raises(TypeError, match=r"^alpha: expected dtype float32, got float64"):
        ada_round(three, three.double(), one)
    with pytest.raises(RuntimeError, match="alpha must have the shape of weight"):
        ada_round(three, torch.ones(4), one)
    with pytest.raises(RuntimeError, match="scale must have 3 elements, got 1"):
        ada_round(three, three, one, axis=0)
    with pytest.raises(ValueError, match="num_bits must be in \\[2, 16\\], got 1"):
        ada_round(three, three, one, 1)
    with pytest.raises(ValueError, match="groups must divide dimension 0, 4, got 3"):
        ada_round(torch.ones(4, 2), torch.ones(4, 2), torch.ones(6), axis=1, groups=3)
    with pytest.raises(IndexError, match="axis 1 is out of range"):
        ada_scale(three, axis=1)
    with pytest.raises(RuntimeError, match="weight must be finite, got NaN or infinity"):
        ada_scale(torch.tensor([1.0, NAN]))
    with pytest.raises(TypeError, match=r"^weight: expected a torch.Tensor, got list"):
        ada_scale([1.0])
