"""arq_fake_quantize: values, groups, straight-through gradient, graphs, errors."""

import math

import numpy as np
import pytest
import reference
import torch
from layouts import LAYOUTS
from learnt import FLOATING, GROUPED, assert_no_host_reads, permuted

from amct_pytorch.ops import arq, arq_fake_quantize, arq_fake_quantize_scale

NAN, INF = float("nan"), float("inf")
op = torch.ops.amct_pytorch.arq_fake_quantize


def expected(weight, num_bits=8, axis=None):
    """(quantized weight, scale) in numpy, one float32 operation at a time."""
    values = weight.detach().cpu().float().numpy()
    scale = reference.arq(values, num_bits, axis)[0]
    s = reference.broadcast(np.asarray(scale, np.float32), values.ndim, axis)
    codes = np.clip(np.rint(values / s), *reference.quant_range(num_bits))
    quantized = torch.from_numpy(np.asarray(codes * s, np.float32)).to(weight.dtype)
    return quantized, torch.from_numpy(np.asarray(scale, np.float32))


def assert_same(got, want):
    assert got.dtype == want.dtype
    torch.testing.assert_close(got.cpu(), want.cpu(), rtol=0, atol=0, equal_nan=True)


# ---- values ----


@pytest.mark.parametrize(
    ("weight", "num_bits", "scale", "quantized"),
    [
        ([1.0, 0.5, -0.5], 2, 1.0, [1.0, 0.0, 0.0]),  # ties go to even
        ([-2.0, 0.6, 1.0], 2, 1.0, [-2.0, 1.0, 1.0]),  # 2^(b-1) steps on the negative side
        ([-2.0, 0.9, 1.2], 4, 0.25, [-2.0, 1.0, 1.25]),
        ([1.75, 0.9, -1.75], 4, 0.25, [1.75, 1.0, -1.75]),
        ([0.0, 0.0], 8, 1.0, [0.0, 0.0]),
        ([-4.0, -2.1], 4, 0.5, [-4.0, -2.0]),
    ],
)
def test_values_by_hand(weight, num_bits, scale, quantized, device):
    got = arq_fake_quantize_scale(torch.tensor(weight, device=device), num_bits)
    assert (got[0].tolist(), got[1].item()) == (quantized, scale)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -4], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout_gives_the_bits_of_the_formula(dtype, layout, axis, device):
    weight = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device))
    got = arq_fake_quantize_scale(weight, 8, axis)
    for values, want in zip(got, expected(weight, 8, axis), strict=True):
        assert_same(values, want)
    assert got[0].stride() == torch.empty_like(weight).stride()
    assert_same(got[1], arq(weight, 8, axis)[0])


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_num_bits(num_bits, device):
    weight = torch.randn(9, 4000).to(device)
    for values, want in zip(
        arq_fake_quantize_scale(weight, num_bits, 0), expected(weight, num_bits, 0), strict=True
    ):
        assert_same(values, want)


@pytest.mark.parametrize(("shape", "groups"), GROUPED, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_groups_are_those_of_a_permuted_copy(dtype, shape, groups, with_threads, device):
    weight = torch.randn(shape).to(dtype).to(device)
    want, scale = arq_fake_quantize_scale(permuted(weight, groups).contiguous(), 4, 0)
    for got in with_threads(lambda: arq_fake_quantize_scale(weight, 4, 1, groups=groups)):
        assert_same(permuted(got[0], groups), want)
        assert_same(got[1], scale)


def test_place_of_the_scale_of_a_group(device):
    """[in 4, out / g 3] in two blocks: factor block * 3 + j."""
    weight = torch.tensor([[1, 2, 3], [0, 0, 0], [4, 5, 6], [1, 1, 1]], device=device) * 127.0
    _, scale = arq_fake_quantize_scale(weight, axis=1, groups=2)
    assert scale.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_of_every_layout(layout, device):
    weight = LAYOUTS[layout](torch.randn(6, 5, 4, 2)).to(device)
    groups = 2 if weight.size(0) % 3 else 3
    got, scale = arq_fake_quantize_scale(weight, 4, -3, groups=groups)
    want = arq_fake_quantize_scale(weight.contiguous(), 4, 1, groups=groups)
    assert_same(got, want[0])
    assert_same(scale, want[1])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (4, 0)])
def test_no_elements(shape, device):
    got = arq_fake_quantize_scale(torch.zeros(shape, device=device))
    assert (got[0].shape, got[1].item()) == (shape, 1.0)


@pytest.mark.parametrize("bad", [NAN, -NAN, INF, -INF])
def test_what_is_not_finite_makes_its_channel_nan(bad, device):
    weight = torch.tensor([[1.0, bad, 2.0], [1.0, 0.0, 1.0]], device=device)
    got, scale = arq_fake_quantize_scale(weight, axis=0)
    assert got.isnan().tolist() == [[True] * 3, [False] * 3]
    assert not scale[0].isfinite()


# ---- gradient, threads, registration, graphs ----


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradient_is_that_of_the_result(dtype, layout, groups, device):
    weight = LAYOUTS[layout](torch.randn(4, 5, 4, 8).to(dtype).to(device)).detach()
    grad = torch.randn(weight.shape).to(dtype).to(device)
    quantized, scale = arq_fake_quantize_scale(weight.requires_grad_(), 4, 1, groups=groups)
    quantized.backward(grad)
    assert_same(weight.grad, grad)
    assert not scale.requires_grad


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_threads_do_not_change_bits(axis, dtype, with_threads):
    weight = torch.randn(300, 1000).to(dtype)
    results = with_threads(lambda: arq_fake_quantize(weight, 8, axis))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("axis", "groups"), [(None, 1), (0, 1), (-2, 1), (1, 2)])
def test_registration(axis, groups, device):
    whole = torch.randn(4, 6, 5, device=device)
    for weight in (whole, whole[:, ::2], whole.transpose(1, 2)):
        weight = weight.detach().requires_grad_()
        torch.library.opcheck(op.default, (weight, 8, axis, groups))


@pytest.mark.parametrize(("axis", "groups"), [(None, 1), (0, 1), (1, 2)])
def test_compiled_graph_has_the_bits_of_eager(axis, groups, device):
    def step(weight):
        return (arq_fake_quantize(weight * 2, 4, axis, groups=groups) ** 2).sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        weight = torch.linspace(-3, 2, 600, device=device).reshape(4, 6, 25).requires_grad_()
        function(weight).backward()
        results.append(weight.grad)
    assert_same(*results)


@pytest.mark.parametrize("shape", [(5,), ()], ids=["vector", "scalar"])
def test_compiled_graph_of_few_dimensions(shape):
    weight = torch.linspace(-3, 2, math.prod(shape)).reshape(shape)
    axis = 0 if shape else None
    compiled = torch.compile(arq_fake_quantize_scale, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        compiled(weight, 4, axis), arq_fake_quantize_scale(weight, 4, axis), strict=True
    ):
        assert_same(found, expected)


def test_nothing_is_read_on_the_host(device):
    weight = torch.randn(4, 6, 5, device=device, requires_grad=True)
    assert_no_host_reads(lambda: arq_fake_quantize(weight, 8, 1, groups=2).sum().backward())


# ---- errors ----


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"^weight: expected dtype .*, got int32"):
        arq_fake_quantize(torch.ones(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="num_bits must be in \\[2, 16\\], got 17"):
        arq_fake_quantize(torch.ones(3), 17)
    with pytest.raises(IndexError, match="axis 1 is out of range"):
        arq_fake_quantize(torch.ones(3), axis=1)
    with pytest.raises(ValueError, match="groups must divide dimension 0, 4, got 3"):
        arq_fake_quantize(torch.ones(4, 2), axis=1, groups=3)
    with pytest.raises(ValueError, match="groups above 1 go with axis 1, got axis 0"):
        arq_fake_quantize(torch.ones(4, 2), axis=0, groups=2)
    with pytest.raises(ValueError, match="groups above 1 go with axis 1, got no axis"):
        arq_fake_quantize(torch.ones(4, 2), groups=2)
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        arq_fake_quantize(torch.ones(4, 2), axis=1, groups=0)
