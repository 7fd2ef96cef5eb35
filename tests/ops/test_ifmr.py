"""ifmr: the published vectors, the exact search, layouts, channels, graphs, errors."""

import pytest
import reference_calibration as reference
import torch
from reference_calibration import DISTRIBUTIONS, example

from amct_pytorch.ops import ifmr

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF_TYPES = [torch.float16, torch.bfloat16]
ops = torch.ops.amct_pytorch
FEW = 16384  # the most values that are searched without a sketch


def numbers(factors):
    """(scale, offset) as Python numbers, or lists of them."""
    scale, offset = factors
    return scale.tolist(), offset.tolist()


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize(
    ("value", "asymmetric", "scale", "offset"),
    [
        (5.0, True, 5 / 255, -128),
        (-5.0, True, 5 / 255, 127),
        (5.0, False, 5 / 127, 0),
        (-5.0, False, 5 / 128, 0),
        (0.0, True, 1.0, -128),
        (0.0, False, 1.0, 0),
        (1e-9, True, 1.0, -128),
        (1e-9, False, 1.0, 0),
    ],
)
@pytest.mark.parametrize("n", [1, 10, 100_000])
def test_constants(value, asymmetric, scale, offset, n):
    got = ifmr(torch.full((n,), value), asymmetric=asymmetric)
    assert numbers(got) == (pytest.approx(scale, rel=1e-6), offset)


def test_factors_are_a_float32_scale_and_an_int32_offset():
    scale, offset = ifmr(torch.randn(2, 3), axis=None)
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert (offset.dtype, offset.shape) == (torch.int32, ())
    scale, offset = ifmr(torch.randn(2, 3), axis=-1)
    assert scale.shape == offset.shape == (3,)


@pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("num_bits", [4, 6, 8, 16])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_choice_is_the_least_float64_loss(name, num_bits, asymmetric):
    for n in (7, 1500):
        x = example(name, n)
        expected = reference.ifmr(x, num_bits, asymmetric=asymmetric)
        assert numbers(ifmr(x, num_bits, asymmetric=asymmetric)) == expected


@pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "student_t3", "outlier"])
def test_choice_is_that_of_the_published_search(name, asymmetric):
    x = example(name, 20_000)
    scale, offset = reference.ifmr_eager(x, 8, asymmetric)
    # torch.arange rounds some ratios twice, which of them depends on the width of its vectors
    assert numbers(ifmr(x, asymmetric=asymmetric)) == (pytest.approx(scale, rel=2e-7), offset)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("n", [1500, 100_000])
def test_choice_is_the_least_float64_loss_of_half_precision_values(dtype, n):
    x = example("normal", n).to(dtype)
    assert numbers(ifmr(x)) == reference.ifmr(x)
    assert_same(ifmr(x), ifmr(x.float()))


# ---- many values: a sketch ----


@pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("num_bits", [4, 6, 8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_choice_among_many_values_is_the_least_float64_loss(name, num_bits, asymmetric):
    x = example(name, 100_000, seed=1)
    expected = reference.ifmr(x, num_bits, asymmetric=asymmetric)
    assert numbers(ifmr(x, num_bits, asymmetric=asymmetric)) == expected


@pytest.mark.parametrize("n", [FEW, FEW + 1, 2_000_000])
def test_choice_on_both_sides_of_the_switch(n):
    x = example("laplace", n)
    assert numbers(ifmr(x)) == reference.ifmr(x)


@pytest.mark.parametrize(
    "options",
    [
        {"max_percentile": 1.0, "min_percentile": 1.0},
        {"max_percentile": 0.99999, "min_percentile": 1.0},
        {"max_percentile": 0.999, "min_percentile": 0.99},
        {"search_range": (0.3, 1.7), "search_step": 0.05},
        {"search_range": (0.01, 3.0), "search_step": 0.1},
        {"num_bits": 2},
        {"num_bits": 9},
        {"num_bits": 16, "search_step": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["normal", "atoms"])
def test_options_among_many_values(name, options):
    x = example(name, 150_000)
    assert numbers(ifmr(x, **options)) == reference.ifmr(x, **options)


SATURATED = {
    "at the top": lambda x: x.clamp(max=1.5),
    "at an odd value": lambda x: x.clamp(max=0.1 + 1.5),
    "at the bottom": lambda x: x.clamp(min=-1.5),
    "at zero from below": lambda x: x.clamp(min=0.0),
    "at zero from above": lambda x: x.clamp(max=-0.0),
    "with a denormal": lambda x: torch.cat([x.relu(), torch.tensor([1e-44, -1e-44])]),
    "with few positive": lambda x: torch.cat([-x.abs(), torch.tensor([2.0])]),
}


@pytest.mark.parametrize("saturated", SATURATED.values(), ids=SATURATED)
def test_percentile_among_equal_values(saturated):
    x = saturated(example("normal", 150_000))
    for percentile in (1.0, 0.99999):
        options = {"max_percentile": percentile, "min_percentile": percentile}
        assert numbers(ifmr(x, **options)) == reference.ifmr(x, **options)


def next_to_ties(n, seed):
    """Values at most 2 ulp from where the levels of one candidate change."""
    random = torch.Generator().manual_seed(seed)
    ties = (torch.randint(-100, 150, (n,), generator=random) + 0.5) * (4 / 255)
    ulp = torch.randint(-2, 3, (n,), generator=random, dtype=torch.int32)
    return (ties.view(torch.int32) + ulp).view(torch.float32)


ADVERSARIAL = {
    "next to ties": next_to_ties,
    "integers": lambda n, seed: example("normal", n, seed).mul(40).round(),
    "denormals": lambda n, seed: example("normal", n, seed) * 1e-41,
    "two scales": lambda n, seed: (
        example("normal", n, seed) * torch.tensor([1.0, 1e-20])[(torch.arange(n) % 2)]
    ),
    "all scales": lambda n, seed: torch.exp(8 * example("normal", n, seed)),
    "far outliers": lambda n, seed: torch.cat(
        [example("normal", n - 2, seed), torch.tensor([1e12, -1e12])]
    ),
    "gelu": lambda n, seed: torch.nn.functional.gelu(example("normal", n, seed)),
    "clipped": lambda n, seed: (3 * example("normal", n, seed)).clamp(-1.5, 6),
}


@pytest.mark.parametrize("percentile", [1.0, 0.99995, 0.9])
@pytest.mark.parametrize("num_bits", [3, 8, 11, 16])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_choice_is_the_least_float64_loss_of_adversarial_values(name, num_bits, percentile):
    x = ADVERSARIAL[name](60_000, num_bits)
    lo, hi = reference.ifmr_range(x, percentile, percentile)
    candidates = reference.ifmr_candidates(lo, hi, num_bits, search_step=0.1)
    losses = reference.ifmr_losses(x, candidates)
    scale, _ = ifmr(
        x, num_bits, max_percentile=percentile, min_percentile=percentile, search_step=0.1
    )
    chosen = [c[2].item() for c in candidates].index(scale.item())
    assert losses[chosen] <= losses.min() * (1 + 1e-12)  # sums of equal losses differ by rounding


@pytest.mark.parametrize("num_bits", [4, 8, 16])
@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("name", ["normal", "relu", "huge", "tiny"])
def test_counted_values_are_searched_as_their_float32_values(name, dtype, num_bits):
    x = (example(name, 50_000) * (1e-33 if name == "huge" else 1)).to(dtype)
    assert_same(ifmr(x, num_bits), ifmr(x.float(), num_bits))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_counted_values_that_are_not_finite(dtype, value):
    x = torch.ones(50_000, dtype=dtype)
    x[40_000] = value
    with pytest.raises(RuntimeError, match="finite"):
        ifmr(x)


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        {"max_percentile": 1.0, "min_percentile": 1.0},
        {"max_percentile": 0.9, "min_percentile": 0.9},
        {"max_percentile": 0.99, "min_percentile": 1.0},
        {"max_percentile": 0.51, "min_percentile": 0.51},
        {"search_range": (0.8, 1.2), "search_step": 0.02},
        {"search_range": (0.3, 1.7), "search_step": 0.003},
        {"search_range": (0.9, 1.1), "search_step": 0.5},
        {"search_range": (0.01, 3.0), "search_step": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["normal", "atoms"])
def test_options(name, options):
    x = example(name, 1500)
    assert numbers(ifmr(x, **options)) == reference.ifmr(x, **options)


@pytest.mark.parametrize(
    ("search_range", "step", "last"),
    [
        ((0.7, 1.3), 0.01, 1.3),
        ((0.8, 1.2), 0.02, 1.18),
        ((0.9, 1.1), 0.01, 1.1),
        ((0.5, 1.0), 2.0, 0.5),
    ],
)
def test_whether_the_end_is_a_candidate_is_an_accident_of_rounding(search_range, step, last):
    x = torch.tensor([1.0] * 999 + [100.0])  # hi = 1 by percentile; 100 asks for the largest range
    scale, _ = ifmr(x, max_percentile=0.99, search_range=search_range, search_step=step)
    assert scale.item() == pytest.approx(last / 255)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_are_searched_on_their_own(axis, dtype):
    x = (example("normal", 3 * 4 * 1500).view(3, 4, 1500) * 2).transpose(1, 2).to(dtype)
    x = x[:, :7] if axis == 1 else x
    x = x * torch.linspace(0.1, 3, x.shape[axis]).reshape(
        [-1 if d == axis % 3 else 1 for d in range(3)]
    )
    x = x.to(dtype)
    scale, offset = ifmr(x, axis=axis)
    each = [ifmr(channel) for channel in x.unbind(axis)]
    assert_same((scale, offset), [torch.stack(factors) for factors in zip(*each, strict=True)])


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 2),
    "sliced": lambda x: torch.cat([x, x], -1)[1:, :, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1),
    "flipped": lambda x: x.flip(0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 1], ids=str)
def test_strides_do_not_matter(layout, axis):
    x = LAYOUTS[layout](example("normal", 6 * 5 * 40).view(6, 5, 40))
    assert_same(ifmr(x, axis=axis), ifmr(x.contiguous(), axis=axis))


def test_channel_of_size_one():
    x = example("normal", 500).view(1, 500)
    scale, offset = ifmr(x, axis=0)
    assert_same((scale[0], offset[0]), ifmr(x))


@pytest.mark.parametrize("n", [1500, 300_000])
def test_order_and_threads_do_not_matter(n):
    x = example("student_t3", n)
    before, expected = torch.get_num_threads(), ifmr(x)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert_same(ifmr(x.flip(0)), expected)
    torch.set_num_threads(before)


@pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])
def test_range_at_the_end_of_float32(asymmetric):
    x = torch.tensor([0.0, 1e37, -3e38])  # ratios above 1.13 overflow in symmetric mode
    assert numbers(ifmr(x, asymmetric=asymmetric)) == reference.ifmr(x, asymmetric=asymmetric)


def test_range_beyond_float32():
    with pytest.raises(RuntimeError, match="float32 cannot hold"):
        ifmr(torch.tensor([3e38, -3e38]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_the_cpu(device, dtype):
    for axis in (None, 0):
        x = example("normal", 2 * 70_000).view(2, -1).to(dtype)
        got = ifmr(x.to(device), axis=axis)
        assert {factor.device.type for factor in got} == {device}
        assert_same(got, ifmr(x, axis=axis))


# ---- graphs ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [None, -1], ids=str)
def test_opcheck(device, axis):
    x = torch.randn(4, 3, device=device)
    arguments = (x, 8, True, 1.0, 1.0, [0.7, 1.3], 0.1, axis)
    torch.library.opcheck(ops.ifmr.default, arguments)


def test_graphs_call_the_op():
    class Range(torch.nn.Module):
        def forward(self, x):
            scale, offset = ifmr(x * 2, 4, axis=1)
            return scale * 3, offset

    x = torch.randn(10, 3, requires_grad=True)
    compiled = torch.compile(Range(), fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(Range(), (x,)).module()(x)
    assert_same(compiled, Range()(x))
    assert_same(exported, Range()(x))
    assert not compiled[0].requires_grad


# ---- errors ----


def test_wrong_types_name_the_argument():
    with pytest.raises(TypeError, match=r"^x: expected dtype .*, got float64"):
        ifmr(torch.ones(3).double())
    with pytest.raises(TypeError, match=r"^x: expected a torch.Tensor, got list"):
        ifmr([1.0])


@pytest.mark.parametrize(
    "options",
    [
        {"num_bits": 1},
        {"num_bits": 17},
        {"max_percentile": 0.5},
        {"max_percentile": 1.01},
        {"min_percentile": 0.5},
        {"min_percentile": float("nan")},
        {"search_range": (0.0, 1.0)},
        {"search_range": (1.0, 1.0)},
        {"search_range": (0.5, float("inf"))},
        {"search_range": (0.5,)},
        {"search_step": 0.0},
        {"search_step": -0.1},
        {"search_step": 1e-9},
        {"search_step": float("nan")},
    ],
    ids=str,
)
def test_bad_values_name_the_argument(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ifmr(torch.ones(3), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [5, 100_000])
@pytest.mark.parametrize("axis", [None, 0], ids=str)
def test_values_that_are_not_finite(value, n, axis):
    x = torch.ones(2, n)
    x[1, n // 2] = value
    with pytest.raises(RuntimeError, match="finite"):
        ifmr(x, axis=axis)


@pytest.mark.parametrize("axis", [None, 0, 1], ids=str)
def test_empty(axis):
    with pytest.raises(ValueError, match="at least one element"):
        ifmr(torch.ones(0, 3), axis=axis)


def test_axis_that_is_not_there():
    with pytest.raises(IndexError, match="axis 2"):
        ifmr(torch.ones(3, 3), axis=2)
