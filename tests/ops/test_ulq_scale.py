"""ulq_scale: learnt scales of weights; values, gradients, groups, graphs, errors."""

import math

import pytest
import torch
from layouts import LAYOUTS
from learnt import FLOATING, GROUPED, assert_no_host_reads, permuted, straight_through_round

from amct_pytorch.ops import ulq_scale

NAN = float("nan")
EPS = 2.0**-23
ops = torch.ops.amct_pytorch


def assert_same(got, want):
    assert got.dtype == want.dtype
    torch.testing.assert_close(got.cpu(), want.cpu(), rtol=0, atol=0, equal_nan=True)


def broadcast(scale, weight, axis):
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = -1
    return scale.reshape(shape)


def expected(weight, scale, num_bits=8, axis=None, reciprocal=False):
    s = broadcast(1 / scale if reciprocal else scale, weight, axis)
    half = 2 ** (num_bits - 1)
    return ((weight.float() / s).round().clamp(-half, half - 1) * s).to(weight.dtype)


def expected_scale_gradient(weight, scale, grad, num_bits, axis, reciprocal):
    """By float64 autograd through the formula, whose rounding is detached."""
    half = 2 ** (num_bits - 1)
    s32 = broadcast(1 / scale if reciprocal else scale, weight, axis)
    above, below = weight > s32 * (half - 1), weight < -s32 * half
    learnt = scale.double().requires_grad_()
    s = broadcast(1 / learnt if reciprocal else learnt, weight, axis)
    inside = s * straight_through_round(weight.double() / s, weight.float() / s32)
    y = torch.where(above, s * (half - 1), torch.where(below, -s * half, inside))
    (total,) = torch.autograd.grad((y * grad.double()).sum(), learnt)
    return total / math.sqrt(weight.numel() / scale.numel() * (half - 1))


# ---- values ----


def test_values_by_hand(device):
    weight = torch.tensor([0.3, 0.25, 0.75, 9.0, -9.0, NAN], device=device)
    y = ulq_scale(weight, torch.tensor(0.5, device=device), num_bits=2)
    assert str(y.tolist()) == "[0.5, 0.0, 0.5, 0.5, -1.0, nan]"
    y = ulq_scale(weight, torch.tensor([2.0], device=device), 2, reciprocal=True)
    assert str(y.tolist()) == "[0.5, 0.0, 0.5, 0.5, -1.0, nan]"


@pytest.mark.parametrize("reciprocal", [False, True], ids=["scale", "reciprocal"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout_gives_the_bits_of_the_formula(dtype, layout, axis, reciprocal, device):
    weight = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device))
    scale = torch.rand([] if axis is None else weight.size(axis)).to(device) + 0.01
    got = ulq_scale(weight, scale, 4, axis, reciprocal)
    assert_same(got, expected(weight.cpu(), scale.cpu(), 4, axis, reciprocal))
    assert got.stride() == torch.empty_like(weight).stride()


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_num_bits(num_bits, device):
    weight, scale = torch.randn(9, 4000), torch.rand(9) * 2.0 ** (2 - num_bits) + 1e-6
    got = ulq_scale(weight.to(device), scale.to(device), num_bits, 0)
    assert_same(got, expected(weight, scale, num_bits, 0))


@pytest.mark.parametrize("bad", [0.0, -0.5, EPS / 2])
def test_a_scale_stays_positive(bad, device):
    weight = torch.tensor([1.0, -1.0, 0.0], device=device)
    got = ulq_scale(weight, torch.tensor(bad, device=device))
    assert got.tolist() == [127 * EPS, -128 * EPS, 0.0]


def test_a_negative_reciprocal_counts_as_a_scale_of_epsilon(device):
    weight = torch.tensor([1.0, -1.0, 0.0], device=device)
    got = ulq_scale(weight, torch.tensor(-2.0, device=device), reciprocal=True)
    assert got.tolist() == [127 * EPS, -128 * EPS, 0.0]


def test_nan_scale_stays(device):
    scale = torch.tensor([NAN, 1.0], device=device)
    got = ulq_scale(torch.ones(2, 3, device=device), scale, axis=0)
    assert got.isnan().tolist() == [[True] * 3, [False] * 3]


# ---- gradients ----


def test_gradients_by_hand(device):
    """s = 0.5, n = 4, qmax = 1: d = 1 - 0.6, 1, -2, 0, and k = 1/2."""
    weight = torch.tensor([0.3, 0.7, -3.0, 0.0], device=device, requires_grad=True)
    scale = torch.tensor(0.5, device=device, requires_grad=True)
    grad = torch.tensor([1.0, 2.0, 4.0, 8.0], device=device)
    ulq_scale(weight, scale, 2).backward(grad)
    assert_same(weight.grad, grad)  # unmasked
    assert scale.grad.item() == pytest.approx((0.4 + 2 - 8) / 2, rel=1e-6)

    inverse = torch.tensor([2.0], device=device, requires_grad=True)
    ulq_scale(weight, inverse, 2, reciprocal=True).backward(grad)
    assert inverse.grad.tolist() == pytest.approx([-0.25 * (0.4 + 2 - 8) / 2], rel=1e-6)


@pytest.mark.parametrize("reciprocal", [False, True], ids=["scale", "reciprocal"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_of_every_layout(dtype, layout, axis, reciprocal, device):
    weight = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device)).detach()
    scale = (torch.rand([] if axis is None else weight.size(axis)) * 0.3 + 0.05).to(device)
    scale = 1 / scale if reciprocal else scale
    grad = torch.randn(weight.shape).to(dtype).to(device)
    learnt = weight.requires_grad_(), scale.requires_grad_()
    ulq_scale(*learnt, 4, axis, reciprocal).backward(grad)

    assert_same(weight.grad, grad)
    if weight.numel() == 0:
        assert scale.grad.eq(0).all()
        return
    values = (weight.detach().cpu(), scale.detach().cpu(), grad.cpu())
    want = expected_scale_gradient(*values, 4, axis, reciprocal)
    torch.testing.assert_close(scale.grad.cpu(), want.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_bits", [4, 8, 16])
@pytest.mark.parametrize("shape", [(3, 40000), (40000, 3), (50, 40, 9), (40, 50, 70)], ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_gradients_of_ties_and_large_weights(axis, shape, num_bits, with_threads, device):
    """Multiples of half a step, some beyond the range, in channels of every shape."""
    half = 2 ** (num_bits - 1)
    scale = torch.full([] if axis is None else [shape[axis]], 0.25)
    weight = torch.randint(-3 * half, 3 * half, shape) * 0.125
    grad = torch.randn(shape)
    want = expected_scale_gradient(weight, scale, grad, num_bits, axis, False)
    on_device = [t.to(device) for t in (grad, weight, scale)]
    results = with_threads(
        lambda: ops.ulq_scale_backward(*on_device, num_bits, axis, False, 1).cpu()
    )
    torch.testing.assert_close(results[0], want.float(), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("shape", "groups"), GROUPED, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_groups_are_those_of_a_permuted_copy(dtype, shape, groups, device):
    weight = torch.randn(shape).to(dtype).to(device)
    grad = torch.randn(shape).to(dtype).to(device)
    scale = (torch.rand(groups * shape[1]) * 0.3 + 0.05).to(device)
    got = ulq_scale(weight, scale, 4, 1, groups=groups)
    got_grad = ops.ulq_scale_backward(grad, weight, scale, 4, 1, False, groups)

    weight, grad = (permuted(t, groups).contiguous() for t in (weight, grad))
    assert_same(permuted(got, groups), ulq_scale(weight, scale, 4, 0))
    want = ops.ulq_scale_backward(grad, weight, scale, 4, 0, False, 1)
    torch.testing.assert_close(got_grad, want, rtol=1e-6, atol=1e-6)  # another order of additions


def test_groups_of_a_weight_that_is_not_contiguous(device):
    weight = torch.randn(6, 5, 4, 2, device=device).transpose(2, 3)
    scale = torch.rand(10, device=device) + 0.1
    grads = []
    for values in (weight, weight.contiguous()):
        learnt = values.detach().requires_grad_(), scale.clone().requires_grad_()
        (ulq_scale(*learnt, 4, 1, groups=2) ** 2).sum().backward()
        grads.append([t.grad for t in learnt])
    for got, want in zip(*grads, strict=True):
        assert_same(got, want)


def test_weight_alone_may_need_a_gradient():
    weight = torch.ones(3, requires_grad=True)
    ulq_scale(weight, torch.tensor(0.5)).sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]


def test_there_is_no_second_derivative():
    scale = torch.tensor(0.5, requires_grad=True)
    y = ulq_scale(torch.ones(3, requires_grad=True), scale)
    (grad,) = torch.autograd.grad((y**2).sum(), scale, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(grad, scale)


def test_gradient_finds_the_scale_of_the_least_error():
    torch.manual_seed(0)
    weight = torch.randn(4096)
    scale = torch.tensor(0.05, requires_grad=True)  # too narrow: 4 bits reach 0.35
    optimizer = torch.optim.SGD([scale], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        ((ulq_scale(weight, scale, 4) - weight) ** 2).sum().mul(0.02).backward()
        optimizer.step()
    grid = torch.linspace(0.05, 1, 500)
    errors = torch.stack([((ulq_scale(weight, s, 4) - weight) ** 2).mean() for s in grid])
    error = ((ulq_scale(weight, scale.detach(), 4) - weight) ** 2).mean()
    assert error < 1.05 * errors.min()


# ---- registration, graphs ----


@pytest.mark.parametrize("reciprocal", [False, True], ids=["scale", "reciprocal"])
@pytest.mark.parametrize(("axis", "groups"), [(None, 1), (0, 1), (-2, 1), (1, 2)])
def test_registration(axis, groups, reciprocal, device):
    whole = torch.randn(4, 6, 5, device=device)
    for weight in (whole, whole[:, ::2], whole.transpose(1, 2)):
        channels = [] if axis is None else groups * weight.size(axis)
        scale = torch.rand(channels, device=device) + 0.1
        options = (8, axis, reciprocal, groups)
        learnt = [t.detach().requires_grad_() for t in (weight, scale)]
        torch.library.opcheck(ops.ulq_scale.default, (*learnt, *options))
        torch.library.opcheck(ops.ulq_scale_backward.default, (weight, weight, scale, *options))


@pytest.mark.parametrize(("axis", "groups"), [(None, 1), (0, 1), (1, 2)])
def test_compiled_graph_has_the_bits_of_eager(axis, groups, device):
    def step(weight, scale):
        return (ulq_scale(weight * 2, scale, 4, axis, groups=groups) ** 2).sum()

    channels = {None: [], 0: [4], 1: [12]}[axis]
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        weight = torch.linspace(-3, 2, 600, device=device).reshape(4, 6, 25).requires_grad_()
        scale = torch.full(channels, 0.3, device=device, requires_grad=True)
        function(weight, scale).backward()
        results.append((weight.grad, scale.grad))
    for got, want in zip(*results, strict=True):
        assert_same(got, want)


def test_nothing_is_read_on_the_host(device):
    weight = torch.randn(4, 6, 5, device=device, requires_grad=True)
    scale = torch.ones(12, device=device, requires_grad=True)
    assert_no_host_reads(lambda: ulq_scale(weight, scale, 8, 1, groups=2).sum().backward())


# ---- errors ----


def test_wrong_arguments():
    one = torch.tensor(1.0)
    with pytest.raises(TypeError, match=r"^weight: expected dtype .*, got int32"):
        ulq_scale(torch.ones(3, dtype=torch.int32), one)
    with pytest.raises(TypeError, match=r"^scale: expected dtype float32, got float16"):
        ulq_scale(torch.ones(3), one.half())
    with pytest.raises(ValueError, match="num_bits must be in \\[2, 16\\], got 1"):
        ulq_scale(torch.ones(3), one, 1)
    with pytest.raises(IndexError, match="axis 1 is out of range"):
        ulq_scale(torch.ones(3), one, axis=1)
    with pytest.raises(RuntimeError, match="scale must have 3 elements, got 1"):
        ulq_scale(torch.ones(3), one, axis=0)
    with pytest.raises(RuntimeError, match="scale must have 1 element, got 3"):
        ulq_scale(torch.ones(3), torch.ones(3))
    with pytest.raises(RuntimeError, match="scale must have 4 elements, got 2"):
        ulq_scale(torch.ones(4, 2), torch.ones(2), axis=1, groups=2)
    with pytest.raises(ValueError, match="groups must divide dimension 0, 4, got 3"):
        ulq_scale(torch.ones(4, 2), torch.ones(6), axis=1, groups=3)
