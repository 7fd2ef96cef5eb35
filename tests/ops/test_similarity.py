"""similarity: cosine, mean square error, SQNR and largest error of two tensors."""

import math

import pytest
import reference
import torch
from layouts import LAYOUTS

from amct_pytorch.ops import Similarity, similarity

FLOATING = [torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


def of(a, b, device="cpu"):
    return similarity(torch.tensor(a, device=device), torch.tensor(b, device=device))


def assert_close(got, expected):
    """Float64 sums in another order: equal to some 1e-12, with cosine to some 1e-15."""
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-15, nan_ok=True)


# ---- values ----


@pytest.mark.parametrize(
    ("a", "b", "cosine", "mse", "sqnr_db", "max_abs"),
    [
        ([3.0, 4.0], [3.0, 4.0], 1.0, 0.0, INF, 0.0),
        ([3.0, 4.0], [-3.0, -4.0], 0.0, 50.0, 10 * math.log10(0.25), 8.0),
        ([1.0, 0.0], [0.0, 1.0], 0.5, 1.0, 10 * math.log10(0.5), 1.0),
        ([1.0, 2.0], [2.0, 4.0], 1.0, 2.5, 0.0, 2.0),  # a pure rescaling
        ([0.0, 0.0], [0.0, 0.0], 1.0, 0.0, INF, 0.0),
        ([0.0, 0.0], [3.0, 0.0], 1.0, 4.5, -INF, 3.0),
        ([3.0, 0.0], [0.0, 0.0], 0.0, 4.5, 0.0, 3.0),
        ([10.0], [9.0], 1.0, 1.0, 20.0, 1.0),
    ],
)
def test_values(a, b, cosine, mse, sqnr_db, max_abs, device):
    got = of(a, b, device)
    assert isinstance(got, Similarity)
    assert all(type(value) is float for value in got)
    assert_close(got, (cosine, mse, sqnr_db, max_abs))


@pytest.mark.parametrize(("a", "b"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (INF, INF), (0.0, NAN)])
def test_what_is_not_finite_gives_nan(a, b, device):
    assert all(math.isnan(value) for value in of([a, 2.0], [b, 2.0], device))


def test_no_elements_count_as_equal(device):
    assert similarity(torch.ones(0, device=device), torch.ones(0, device=device)) == (1, 0, INF, 0)


def test_largest_float32_values(device):
    assert of([3e38, 1.0], [-3e38, 1.0], device).max_abs == pytest.approx(6e38)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout(dtype, layout, device):
    a = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device))
    b = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device))
    expected = reference.similarity(a.cpu().double(), b.cpu().double())
    assert_close(similarity(a, b), expected)
    assert_close(similarity(a, b.contiguous()), expected)


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 3e-5])
def test_cosine_of_close_tensors(noise, device):
    """1 - cosine keeps its digits down to the 1e-16 that a float64 near 1 can show."""
    a = torch.randn(50_000)
    b = a + noise * torch.randn(50_000)
    got, expected = similarity(a.to(device), b.to(device)), reference.similarity(a, b)
    assert 1 - got.cosine == pytest.approx(1 - expected[0], rel=1e-9, abs=3e-16)
    assert_close(got, expected)


# ---- threads, registration ----


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_threads_do_not_change_bits(dtype, with_threads):
    a, b = torch.randn(300_001).to(dtype), torch.randn(300_001).to(dtype)
    results = with_threads(lambda: similarity(a, b))
    assert len(set(results)) == 1


def test_registration(device):
    a, b = torch.randn(3, 5, device=device), torch.randn(5, 3, device=device).t()
    torch.library.opcheck(torch.ops.amct_pytorch.similarity_sums.default, (a, b))


def test_sums_inside_a_graph():
    a, b = torch.randn(20), torch.randn(20)
    op = torch.ops.amct_pytorch.similarity_sums
    compiled = torch.compile(lambda a, b: op(a, b) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, b), op(a, b) * 2)


# ---- errors ----


def test_wrong_types_name_the_argument():
    with pytest.raises(TypeError, match=r"^a: expected dtype .*, got float64"):
        similarity(torch.ones(2).double(), torch.ones(2))
    with pytest.raises(TypeError, match=r"^b: expected dtype float32, got float16"):
        similarity(torch.ones(2), torch.ones(2).half())
    with pytest.raises(TypeError, match=r"^b: expected a torch.Tensor, got list"):
        similarity(torch.ones(2), [1.0])


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_other_shapes(shape):
    with pytest.raises(RuntimeError, match="b must have the shape of a"):
        similarity(torch.ones(2), torch.ones(shape))
