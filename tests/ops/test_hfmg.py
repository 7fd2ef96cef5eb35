"""hfmg: published vectors and picks, the dense loss, histograms, channels, graphs, errors."""

import pytest
import reference_calibration as reference
import torch
from reference_calibration import DISTRIBUTIONS, example

from amct_pytorch.ops import hfmg

INF = float("inf")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ops = torch.ops.amct_pytorch
ORDINARY = [name for name in DISTRIBUTIONS if name != "huge"]  # torch.histc overflows beyond 1e35


def numbers(factors):
    """(scale, offset) as Python numbers, or lists of them."""
    scale, offset = factors
    return scale.tolist(), offset.tolist()


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


def histogram(x, num_of_bins=1024):
    """Range and counts of one batch."""
    ranges = torch.tensor([[torch.inf, -torch.inf]])
    ranges, counts = ops.hfmg_update(
        x, ranges, torch.zeros(1, num_of_bins, dtype=torch.int64), None
    )
    return ranges[0], counts[0]


@pytest.mark.parametrize(
    ("value", "asymmetric", "scale", "offset"),
    [
        (5.0, True, 5 / 255, -128),
        (-5.0, True, 5 / 255, 127),
        (5.0, False, 5 / 127, 0),
        (-5.0, False, 5 / 127, 0),
        (0.0, True, 1.0, -128),
        (0.0, False, 1.0, 0),
        (1e-9, True, 1.0, -128),
    ],
)
@pytest.mark.parametrize("n", [1, 10])
def test_constants(value, asymmetric, scale, offset, n):
    got = hfmg(torch.full((n,), value), asymmetric=asymmetric)
    assert numbers(got) == (pytest.approx(scale, rel=1e-6), offset)


def test_factors_are_a_float32_scale_and_an_int32_offset():
    scale, offset = hfmg(torch.randn(2, 3))
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert (offset.dtype, offset.shape) == (torch.int32, ())
    scale, offset = hfmg(torch.randn(2, 3), axis=-1)
    assert scale.shape == offset.shape == (3,)


# ---- histogram ----


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("num_of_bins", [1024, 8192])
def test_bins_are_those_of_histc(name, num_of_bins):
    x = example(name, 40_000)
    (lo, hi), counts = histogram(x, num_of_bins)
    assert (lo, hi) == (x.min(), x.max())
    assert counts.tolist() == torch.histc(x, num_of_bins, lo.item(), hi.item()).tolist()


@pytest.mark.parametrize("value", [5.0, -5.0, 0.0])
def test_bin_of_a_constant_is_that_of_histc(value):
    x = torch.full((10,), value)
    assert histogram(x)[1].tolist() == torch.histc(x, 1024, value, value).tolist()


def test_bins_of_the_widest_range():
    x = example("normal", 5000)
    scaled = x * 2.0**120  # exact, and beyond what a product of range and bins could hold
    assert torch.equal(histogram(scaled)[1], histogram(x)[1])
    assert numbers(hfmg(scaled)) == (hfmg(x)[0].item() * 2.0**120, hfmg(x)[1].item())


def test_counts_do_not_saturate_at_2_to_the_24():
    zeros = torch.zeros(1).expand(2**25)
    _, counts = histogram(torch.cat([zeros, torch.ones(1)]))
    assert (counts[0], counts[-1]) == (2**25, 1)


# ---- search ----


@pytest.mark.parametrize("num_of_bins", [2048, 4096, 8192])
def test_choice_is_the_least_dense_loss(num_of_bins):
    x = example("relu", 200_000)
    assert numbers(hfmg(x, num_of_bins=num_of_bins)) == reference.hfmg(x, num_of_bins=num_of_bins)


@pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("num_bits", [4, 6, 8, 12, 16])
@pytest.mark.parametrize("name", ORDINARY)
def test_choice_of_every_distribution(name, num_bits, asymmetric):
    x = example(name, 5000)
    got = hfmg(x, num_bits, asymmetric=asymmetric, num_of_bins=1024)
    assert numbers(got) == reference.hfmg(x, num_bits, asymmetric=asymmetric, num_of_bins=1024)


@pytest.mark.parametrize("name", ["normal", "shifted", "laplace", "relu", "student_t3"])
@pytest.mark.parametrize(("num_bits", "asymmetric"), [(4, True), (6, False), (8, True)])
def test_choice_is_that_of_the_published_search(name, num_bits, asymmetric):
    x = example(name, 200_000)
    expected = reference.hfmg_published(x, num_bits, asymmetric, num_of_bins=1024)
    assert numbers(hfmg(x, num_bits, asymmetric=asymmetric, num_of_bins=1024)) == expected


def test_flat_data_keep_their_full_range():
    x = torch.linspace(0, 1, 100_001)
    assert hfmg(x)[0].item() == pytest.approx(1 / 255, rel=1e-6)


def test_small_values_keep_their_range():
    x = torch.linspace(0, 1e-4, 100_001)  # cells of 4e-7; at 1e-5 they are below 2^-23
    assert hfmg(x)[0].item() == pytest.approx(1e-4 / 255, rel=1e-6)


@pytest.mark.parametrize(("n", "keeps_outlier"), [(100_000, True), (2_000_000, False)])
def test_outlier_that_leaves_one_published_candidate_is_weighed(n, keeps_outlier):
    x = torch.cat([example("normal", n), torch.tensor([100.0])])
    scale, _ = hfmg(x)
    assert (scale.item() > 0.35) == keeps_outlier
    assert (scale.item() < 0.05) == (not keeps_outlier)


# ---- layouts, channels, devices ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_are_searched_on_their_own(axis, dtype):
    x = example("normal", 3 * 5 * 400).view(3, 5, 400).to(dtype)[..., 390:]
    each = [hfmg(channel, num_of_bins=1024) for channel in x.unbind(axis)]
    expected = [torch.stack(factors) for factors in zip(*each, strict=True)]
    assert_same(hfmg(x, num_of_bins=1024, axis=axis), expected)


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 2),
    "sliced": lambda x: torch.cat([x, x], -1)[1:, :, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 1], ids=str)
def test_strides_do_not_matter(layout, axis):
    x = LAYOUTS[layout](example("normal", 6 * 5 * 40).view(6, 5, 40))
    assert_same(hfmg(x, axis=axis), hfmg(x.contiguous(), axis=axis))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_the_cpu_for_any_number_of_threads(device, dtype):
    before = torch.get_num_threads()
    x = example("student_t3", 200_000).view(2, -1).to(dtype)
    for axis in (None, 0):
        expected = hfmg(x, axis=axis)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            got = hfmg(x.to(device), axis=axis)
            assert {factor.device.type for factor in got} == {device}
            assert_same(got, expected)
        torch.set_num_threads(before)


# ---- graphs ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [None, -1], ids=str)
def test_opcheck(device, axis):
    arguments = (torch.randn(4, 3, device=device), 8, True, 1024, axis)
    torch.library.opcheck(ops.hfmg.default, arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [None, 1], ids=str)
def test_opcheck_of_the_ops_with_a_state(device, axis):
    x = torch.randn(4, 3, device=device)
    rows = 1 if axis is None else 3
    empty = torch.tensor([INF, -INF]).repeat(rows, 1), torch.zeros(rows, 1024, dtype=torch.int64)
    state = ops.hfmg_update(x, *empty, axis)
    torch.library.opcheck(ops.hfmg_update.default, (x, *empty, axis))
    torch.library.opcheck(ops.hfmg_merge.default, (*state, *state))
    torch.library.opcheck(ops.hfmg_search.default, (*state, 8, True))


def test_graphs_call_the_op():
    class Range(torch.nn.Module):
        def forward(self, x):
            scale, offset = hfmg(x * 2, 4, axis=1)
            return scale * 3, offset

    x = torch.randn(10, 3, requires_grad=True)
    compiled = torch.compile(Range(), fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(Range(), (x,)).module()(x)
    assert_same(compiled, Range()(x))
    assert_same(exported, Range()(x))


# ---- errors ----


def test_wrong_types_name_the_argument():
    with pytest.raises(TypeError, match=r"^x: expected dtype .*, got float64"):
        hfmg(torch.ones(3).double())
    with pytest.raises(TypeError, match=r"^x: expected a torch.Tensor, got list"):
        hfmg([1.0])


@pytest.mark.parametrize(
    "options", [{"num_bits": 1}, {"num_bits": 17}, {"num_of_bins": 4095}], ids=str
)
def test_bad_values_name_the_argument(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        hfmg(torch.ones(3), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("axis", [None, 0], ids=str)
def test_values_that_are_not_finite(value, axis):
    for n in (5, 100_000):
        x = torch.ones(2, n)
        x[1, n - 1] = value
        with pytest.raises(RuntimeError, match="finite"):
            hfmg(x, axis=axis)


def test_range_beyond_float32():
    with pytest.raises(RuntimeError, match="float32 cannot hold"):
        hfmg(torch.tensor([3e38, -3e38]))


@pytest.mark.parametrize("axis", [None, 0, 1], ids=str)
def test_empty(axis):
    with pytest.raises(ValueError, match="at least one element"):
        hfmg(torch.ones(0, 3), axis=axis)


def test_axis_that_is_not_there():
    with pytest.raises(IndexError, match="axis 2"):
        hfmg(torch.ones(3, 3), axis=2)
