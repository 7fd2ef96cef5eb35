"""ulq: learnt clip ranges; their guard, values, gradients, graphs, errors."""

import numpy as np
import pytest
import torch
from layouts import LAYOUTS
from learnt import FLOATING, assert_no_host_reads, straight_through_round

from amct_pytorch.ops import ulq, ulq_factors

NAN, INF = float("nan"), float("inf")
EPS = 2.0**-23
ops = torch.ops.amct_pytorch
each_form = pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])


def clips(maximum, minimum, device="cpu"):
    return torch.tensor(float(maximum), device=device), torch.tensor(float(minimum), device=device)


def expected_values(x, scale, offset, num_bits):
    """The formula in numpy, one float32 operation at a time."""
    qmin, qmax = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    s, o = np.float32(scale.item()), np.float32(offset.item())
    codes = np.clip(np.rint(x.detach().cpu().float().numpy() / s + o), qmin, qmax)
    return torch.from_numpy(np.asarray((codes - o) * s)).to(x.dtype)


def assert_same(got, expected):
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


# ---- the range and its factors ----


@pytest.mark.parametrize(
    ("pair", "num_bits", "scale", "offset"),
    [
        ((1.0, -0.5), 8, 1.5 / 255, -43),
        ((7.5, -7.5), 4, 1.0, 0),  # -8 + 7.5 is a tie
        ((1.5, 0.0), 2, 0.5, -2),
        ((0.0, -3.0), 2, 1.0, 1),
        ((5.0, 2.0), 8, 5 / 255, -128),  # widened to contain zero
        ((-2.0, -5.0), 8, 5 / 255, 127),
    ],
)
def test_factors_of_the_asymmetric_form(pair, num_bits, scale, offset, device):
    got = ulq_factors(*clips(*pair, device), num_bits)
    assert (got[0].item(), got[1].item()) == (np.float32(scale), offset)


@pytest.mark.parametrize(
    ("pair", "num_bits", "scale"),
    [
        ((1.0, -0.5), 8, 1 / 127),
        ((0.5, -1.0), 8, 1 / 128),
        ((1.0, -1.0), 8, 1 / 127),
        ((-2.0, -5.0), 4, 5 / 8),
    ],
)
def test_factors_of_the_symmetric_form(pair, num_bits, scale, device):
    got = ulq_factors(*clips(*pair, device), num_bits, asymmetric=False)
    assert (got[0].item(), got[1].item()) == (np.float32(scale), 0)


def guarded(pair, previous=None, device="cpu", **options):
    previous = clips(*previous, device) if previous else None
    got = ulq_factors(*clips(*pair, device), previous=previous, **options)
    return got[2].item(), got[3].item()


BAD_PAIRS = {
    "equal": (1.0, 1.0),
    "collapsed": (1e-7, 0.0),
    "collapsed_for_its_size": (1000.00006, 1000.0),
    "inverted": (-1.0, 1.0),
    "nan_max": (NAN, -1.0),
    "nan_min": (1.0, NAN),
    "infinite_max": (INF, -1.0),
    "infinite_min": (1.0, -INF),
    "infinite_width": (3e38, -3e38),
}


@pytest.mark.parametrize("pair", BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_range_that_is_none_gives_way(pair, device):
    assert guarded(pair, device=device) == (0.0, 0.0)
    assert guarded(pair, (2.0, -3.0), device) == (2.0, -3.0)
    assert guarded(pair, (NAN, -3.0), device) == (0.0, 0.0)
    assert guarded(pair, (2.0, -INF), device) == (0.0, 0.0)


def test_a_range_that_is_one_stays(device):
    assert guarded((2.0 * EPS, 0.0), (5.0, -5.0), device) == (2.0 * EPS, 0.0)
    assert guarded((1.0, -2.0), (5.0, -5.0), device) == (1.0, -2.0)
    assert guarded((3.0, 1.0), (5.0, -5.0), device) == (3.0, 0.0)
    assert guarded((-1.0, -2.0), (5.0, -5.0), device) == (0.0, -2.0)


def test_fixed_min_holds_the_lower_end_at_zero(device):
    assert guarded((2.0, -3.0), device=device, fixed_min=True) == (2.0, 0.0)
    assert guarded((2.0, NAN), device=device, fixed_min=True) == (2.0, 0.0)
    assert guarded((-1.0, -3.0), device=device, fixed_min=True) == (0.0, 0.0)
    assert guarded((-1.0, -3.0), (4.0, -4.0), device, fixed_min=True) == (4.0, 0.0)
    assert guarded((NAN, -3.0), (4.0, NAN), device, fixed_min=True) == (4.0, 0.0)


def test_no_range_at_all_has_scale_one(device):
    scale, offset, *_ = ulq_factors(*clips(0.0, 0.0, device))
    assert (scale.item(), offset.item()) == (1.0, -128)
    scale, offset, *_ = ulq_factors(*clips(0.0, 0.0, device), asymmetric=False)
    assert (scale.item(), offset.item()) == (1.0, 0)


def test_factors_are_scalars_and_constants(device):
    pair = [clip.reshape(1).requires_grad_() for clip in clips(1.0, -1.0, device)]
    got = ulq_factors(*pair)
    assert [tensor.shape for tensor in got] == [()] * 4
    assert [tensor.dtype for tensor in got] == [torch.float32, torch.int32, *[torch.float32] * 2]
    assert not any(tensor.requires_grad for tensor in got)
    with_values = ulq(torch.ones(3, device=device), *pair)
    assert_same(torch.stack(with_values[1:]), torch.stack(got))
    assert [tensor.requires_grad for tensor in with_values] == [True, *[False] * 4]


# ---- values ----


def test_values_of_the_documentation(device):
    x = torch.tensor([-2.0, 0.3, 0.6, 9.0, NAN, INF, -INF], device=device)
    y, scale, offset, *_ = ulq(x, *clips(1.5, 0.0, device), num_bits=2)
    assert str(y.tolist()) == "[0.0, 0.5, 0.5, 1.5, nan, 1.5, 0.0]"
    assert (scale.item(), offset.item()) == (0.5, -2)


def test_offset_is_added_before_rounding(device):
    x = torch.tensor([0.5, 1.5], device=device)
    y = ulq(x, *clips(8.0, -7.0, device), num_bits=4)  # s = 1, o = -1
    assert y[2].item() == -1
    assert y[0].tolist() == [1.0, 1.0]  # rounding first gives 0 and 2


@each_form
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout_gives_the_bits_of_the_formula(dtype, layout, asymmetric, device):
    x = LAYOUTS[layout]((torch.randn(3, 5, 4, 7) * 3).to(dtype).to(device))
    y, scale, offset, *_ = ulq(x, *clips(4.1, -2.7, device), asymmetric=asymmetric)
    assert_same(y, expected_values(x, scale, offset, 8))
    assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (257,), (100003,)])
@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_num_bits(num_bits, shape, device):
    x = (torch.randn(shape) * 3).to(device)
    y, scale, offset, *_ = ulq(x, *clips(4.1, -2.7, device), num_bits)
    assert_same(y, expected_values(x, scale, offset, num_bits))


# ---- gradients ----


def test_gradients_by_hand(device):
    """s = 0.5, o = -2: inside lies [0, 1.5]."""
    x = torch.tensor([-2.0, 0.3, 0.7, 9.0], device=device, requires_grad=True)
    maximum, minimum = (clip.requires_grad_() for clip in clips(1.5, 0.0, device))
    y, *_ = ulq(x, maximum, minimum, num_bits=2)
    y.backward(torch.tensor([1.0, 2.0, 4.0, 8.0], device=device))
    assert x.grad.tolist() == [0.0, 2.0, 4.0, 0.0]
    # 2 (1 - 0.6) / 3 + 4 (1 - 1.4) / 3 + 8
    assert maximum.grad.item() == pytest.approx(8 - 0.8 / 3, rel=1e-6)
    assert minimum.grad.item() == pytest.approx(1 + 0.8 / 3, rel=1e-6)


def test_gradients_of_the_symmetric_form_by_hand(device):
    """s = 0.5: inside lies [-1, 0.5]."""
    x = torch.tensor([-2.0, 0.3, 0.1, 9.0], device=device, requires_grad=True)
    maximum, minimum = (clip.requires_grad_() for clip in clips(0.5, -0.5, device))
    ulq(x, maximum, minimum, 2, asymmetric=False)[0].sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    # -2 + (1 - 0.6) + (0 - 0.2) + 1
    assert maximum.grad.item() == pytest.approx(-0.8, rel=1e-6)
    assert minimum.grad.item() == 0.0


def reference_gradients(x, maximum, minimum, grad, num_bits, fixed_min, asymmetric):
    """By float64 autograd through the formula, whose rounding is detached."""
    scale, offset, used_max, used_min = ulq_factors(
        maximum.detach(), minimum.detach(), num_bits, fixed_min=fixed_min, asymmetric=asymmetric
    )
    half = 2 ** (num_bits - 1)
    above = x > scale * (half - 1 - offset)
    below = x < scale * (-half - offset)
    x, used_max, used_min = (t.detach().double().requires_grad_() for t in (x, used_max, used_min))
    if asymmetric:
        s = (used_max - used_min) / (2**num_bits - 1)
        v = torch.where(above, used_max, torch.where(below, used_min, x))
        y = s * straight_through_round(v / s, v.float() / scale)
    else:
        s = used_max / (half - 1) if used_max >= -used_min else -used_min / half
        inside = s * straight_through_round(x / s, x.float() / scale)
        y = torch.where(above, s * (half - 1), torch.where(below, -s * half, inside))
    grads = torch.autograd.grad(
        (y * grad.double()).sum(), [x, used_max, used_min], allow_unused=True
    )
    gx, gmax, gmin = (torch.zeros([]) if g is None else g for g in grads)
    return gx, gmax, torch.zeros([]) if fixed_min else gmin


def gradient_data():
    """Random values; halves of a step of 2^-6, on and around the ends of the range."""
    random = torch.randn(5000) * 2
    ties = torch.arange(-600, 600) * 2.0**-7
    around = [torch.nextafter(ties, torch.tensor(end)) for end in (-INF, INF)]
    return torch.cat([random, ties, *around])


@each_form
@pytest.mark.parametrize("fixed_min", [False, True], ids=["free", "fixed_min"])
@pytest.mark.parametrize("num_bits", [4, 8, 16])
@pytest.mark.parametrize(
    "pair", ["aligned", (1.3, -0.4), (0.4, -1.3), (2.0, 0.5), (-0.5, -2.0)], ids=str
)
def test_gradients_are_those_of_the_formula(pair, num_bits, fixed_min, asymmetric, device):
    if pair == "aligned":  # the scale is 2^-6
        pair = (2 ** (num_bits - 1) - 1) * 2.0**-6, -(2 ** (num_bits - 1)) * 2.0**-6
        pair = pair if asymmetric or not fixed_min else (pair[0], 0.0)
    if fixed_min and pair[0] < 0:
        pytest.skip("no range is left")
    x = gradient_data().to(device).requires_grad_()
    maximum, minimum = (clip.requires_grad_() for clip in clips(*pair, device))
    grad = torch.randn(x.shape, device=device)
    options = {"fixed_min": fixed_min, "asymmetric": asymmetric}
    ulq(x, maximum, minimum, num_bits, **options)[0].backward(grad)

    expected = reference_gradients(x, maximum, minimum, grad, num_bits, **options)
    assert_same(x.grad, expected[0].float())
    for got, want in zip((maximum.grad, minimum.grad), expected[1:], strict=True):
        # thousands of terms, in which the float32 scale takes the place of the exact one
        assert got.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-3)


@each_form
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_of_every_layout(dtype, layout, asymmetric, device):
    x = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device)).detach().requires_grad_()
    maximum, minimum = (clip.reshape(1).requires_grad_() for clip in clips(1.3, -0.4, device))
    grad = torch.randn(x.shape).to(dtype).to(device)
    ulq(x, maximum, minimum, asymmetric=asymmetric)[0].backward(grad)

    values = (x.detach().float(), maximum[0], minimum[0], grad, 8, False, asymmetric)
    gx, *expected = reference_gradients(*values)
    assert_same(x.grad, gx.to(dtype))
    for got, want in zip((maximum.grad, minimum.grad), expected, strict=True):
        assert (got.shape, got.dtype) == ((1,), torch.float32)
        assert got.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-4)


def test_sums_of_half_precision_gradients_do_not_overflow(device):
    x = torch.full((1000,), 9.0, dtype=torch.float16, device=device)
    maximum, minimum = (clip.requires_grad_() for clip in clips(1.0, -1.0, device))
    ulq(x, maximum, minimum)[0].backward(torch.full_like(x, 1000.0))
    assert maximum.grad.item() == pytest.approx(1e6, rel=0.01)  # float16 ends at 65504


def test_the_guard_passes_the_gradient_to_the_clips_that_were_given(device):
    maximum, minimum = (clip.requires_grad_() for clip in clips(NAN, -1.0, device))
    x = torch.tensor([9.0, -9.0, -9.0], device=device)
    *_, used_max, used_min = out = ulq(x, maximum, minimum, previous=clips(7.5, -8.0, device))
    out[0].sum().backward()
    assert (used_max.item(), used_min.item()) == (7.5, -8.0)
    assert (maximum.grad + minimum.grad).item() == pytest.approx(3.0)  # one above, two below


def test_scale_of_no_range_counts_as_one(device):
    """s = 1, o = -128: inside lies [0, 255]."""
    x = torch.tensor([-1.0, 0.25, 300.0], device=device, requires_grad=True)
    maximum, minimum = (clip.requires_grad_() for clip in clips(0.0, 0.0, device))
    ulq(x, maximum, minimum)[0].sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert maximum.grad.item() == pytest.approx(1 - 0.25 / 255)
    assert minimum.grad.item() == pytest.approx(1 + 0.25 / 255)


def test_nan_passes_its_gradient_on(device):
    x = torch.tensor([NAN, 1.0], device=device, requires_grad=True)
    ulq(x, *clips(1.0, -1.0, device))[0].backward(torch.tensor([3.0, 2.0], device=device))
    assert x.grad.tolist() == [3.0, 2.0]


def test_clips_alone_may_need_a_gradient(device):
    maximum, minimum = clips(1.0, -1.0, device)
    ulq(torch.full((3,), 2.0, device=device), maximum.requires_grad_(), minimum)[0].sum().backward()
    assert maximum.grad is not None
    assert minimum.grad is None


def test_other_results_alone_give_no_gradient():
    x = torch.ones(3, requires_grad=True)
    y, scale, *_ = ulq(x, *clips(1.0, -1.0))
    assert y.requires_grad
    assert not scale.requires_grad


def test_there_is_no_second_derivative():
    x = torch.ones(3, requires_grad=True)
    y = ulq(x, *clips(2.0, -1.0))[0]
    (grad,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(grad.sum(), x)


def test_what_is_kept_for_the_backward():
    kept = []
    x, pair = torch.randn(50, requires_grad=True), clips(1.0, -1.0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ulq(x, *pair)
    assert [t.numel() for t in kept] == [50, 1, 1]
    assert kept[0].data_ptr() == x.data_ptr()


# ---- threads, registration, graphs ----


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_threads_do_not_change_bits(dtype, with_threads):
    x = torch.randn(7, 30011).to(dtype)
    grad = torch.randn(7, 30011).to(dtype)
    pair = clips(1.3, -0.4)
    backward = with_threads(lambda: ops.ulq_backward(grad, x, *pair, 8, False, True))
    forward = with_threads(lambda: ulq(x, *pair)[0])
    for result in backward:
        assert all(torch.equal(got, want) for got, want in zip(result, backward[0], strict=True))
    assert all(torch.equal(result, forward[0]) for result in forward)


@each_form
@pytest.mark.parametrize("previous", [(None, None), clips(1.0, -1.0)], ids=["none", "previous"])
def test_registration(previous, asymmetric, device):
    x = torch.randn(3, 5, 4, device=device)[:, ::2]
    previous = [None if clip is None else clip.to(device) for clip in previous]
    pair, options = clips(1.3, -0.4, device), (8, False, asymmetric)
    check = torch.library.opcheck
    check(ops.ulq_factors.default, (*pair, *options, *previous))
    check(ops.ulq.default, (x, *pair, *options, *previous))
    learnt = [t.clone().requires_grad_() for t in (x, *pair)]
    check(ops.ulq.default, (*learnt, *options, *previous))
    check(ops.ulq_backward.default, (x, x, *pair, *options))


@each_form
def test_compiled_graph_has_the_bits_of_eager(asymmetric, device):
    def step(x, maximum, minimum, previous):
        y, *rest = ulq(x * 2, maximum, minimum, previous=previous, asymmetric=asymmetric)
        return (y * y).sum(), rest

    previous = clips(1.0, -1.0, device)
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        learnt = [torch.linspace(-3, 3, 999, device=device), *clips(1.3, -0.4, device)]
        learnt = [t.requires_grad_() for t in learnt]
        loss, rest = function(*learnt, previous)
        loss.backward()
        results.append([*rest, *(t.grad for t in learnt)])
    for got, want in zip(*results, strict=True):
        assert_same(got, want)


def test_nothing_is_read_on_the_host(device):
    x = torch.randn(50, device=device, requires_grad=True)
    pair = [clip.requires_grad_() for clip in clips(1.0, -1.0, device)]
    assert_no_host_reads(
        lambda: ulq(x, *pair, previous=clips(1.0, -1.0, device))[0].sum().backward()
    )


# ---- errors ----


def test_wrong_types_name_the_argument():
    x, pair = torch.ones(3), clips(1.0, -1.0)
    with pytest.raises(TypeError, match=r"^x: expected dtype .*, got float64"):
        ulq(x.double(), *pair)
    with pytest.raises(TypeError, match=r"^clip_max: expected dtype float32, got float16"):
        ulq(x, pair[0].half(), pair[1])
    with pytest.raises(TypeError, match=r"^clip_min: expected a torch.Tensor, got float"):
        ulq(x, pair[0], -1.0)
    with pytest.raises(TypeError, match=r"^previous\[1\]: expected a torch.Tensor, got int"):
        ulq_factors(*pair, previous=(pair[0], 0))


def test_wrong_sizes():
    x, pair = torch.ones(3), clips(1.0, -1.0)
    with pytest.raises(RuntimeError, match="clip_max must have 1 element, got 2"):
        ulq(x, torch.ones(2), pair[1])
    with pytest.raises(RuntimeError, match="clip_min must be 0-d or 1-d, got 2-d"):
        ulq(x, pair[0], torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="previous clip_max must have 1 element, got 0"):
        ulq(x, *pair, previous=(torch.ones(0), pair[1]))
    with pytest.raises(RuntimeError, match="previous must have both ends"):
        ops.ulq_factors(*pair, 8, False, True, pair[0], None)


@pytest.mark.parametrize("num_bits", [1, 17])
def test_num_bits_outside_the_range(num_bits):
    with pytest.raises(ValueError, match="num_bits"):
        ulq(torch.ones(3), *clips(1.0, -1.0), num_bits)
    with pytest.raises(ValueError, match="num_bits"):
        ulq_factors(*clips(1.0, -1.0), num_bits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_wrong_devices():
    with pytest.raises(RuntimeError, match="clip_max must be on the device"):
        ulq(torch.ones(3, device="cuda"), *clips(1.0, -1.0))
