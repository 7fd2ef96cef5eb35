"""arq: the factors of a weight from its extremes."""

import numpy as np
import pytest
import reference
import torch
from layouts import LAYOUTS

from amct_pytorch.ops import arq

FLOATING = [torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


def assert_factors(got, expected):
    """Equal bits of (scale, offset), with dtypes and shapes."""
    scale, offset = (torch.from_numpy(np.asarray(factor)) for factor in expected)
    assert (got[0].dtype, got[1].dtype) == (torch.float32, torch.int32)
    assert (got[0].shape, got[1].shape) == (scale.shape, offset.shape)
    assert torch.equal(got[0].cpu(), scale)
    assert torch.equal(got[1].cpu(), offset)


# ---- values ----


@pytest.mark.parametrize(
    ("weight", "num_bits", "scale"),
    [
        ([0.5, -1.0], 8, 1 / 128),
        ([1.0, -0.5], 8, 1 / 127),
        ([1.0, -1.0], 8, 1 / 127),
        ([-1.0, -2.0], 4, 0.25),
        ([1.0, -0.5], 4, 1 / 7),
        ([3.0, 1.0], 2, 3.0),
        ([-3.0, 1.0], 2, 1.5),
        ([0.0, 0.0], 8, 1.0),
        ([1.5e-5, 0.0], 8, 1.0),  # below the float32 epsilon
    ],
)
def test_symmetric_values(weight, num_bits, scale, device):
    got = arq(torch.tensor(weight, device=device), num_bits)
    assert_factors(got, (np.float32(scale), np.int32(0)))


@pytest.mark.parametrize(
    ("weight", "scale", "offset"),
    [
        ([0.5, -1.0], 1.5 / 255, 42),
        ([5.0, 5.0], 5 / 255, -128),
        ([-5.0, -5.0], 5 / 255, 127),
        ([0.0, 0.0], 1.0, -128),
    ],
)
def test_asymmetric_values(weight, scale, offset, device):
    got = arq(torch.tensor(weight, device=device), asymmetric=True)
    assert_factors(got, (np.float32(scale), np.int32(offset)))


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -4], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout_gives_the_bits_of_the_formula(dtype, layout, axis, asymmetric, device):
    weight = LAYOUTS[layout](torch.randn(3, 5, 4, 7).to(dtype).to(device))
    expected = reference.arq(weight.cpu().float(), 8, axis, asymmetric)
    assert_factors(arq(weight, 8, axis, asymmetric), expected)


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_num_bits(num_bits, asymmetric, device):
    weight = torch.randn(9, 40).to(device)
    expected = reference.arq(weight.cpu(), num_bits, 0, asymmetric)
    assert_factors(arq(weight, num_bits, 0, asymmetric), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_large_weights(dtype, axis, with_threads, device):
    """More than one thread's share, with the extremes of a channel at either end."""
    weight = torch.randn(300, 1000).to(dtype)
    weight[0, 0], weight[-1, -1], weight[0, -1] = 30, -40, 50
    expected = reference.arq(weight.float(), 8, axis, True)
    on_device = weight.to(device)
    for got in with_threads(lambda: arq(on_device, 8, axis, True)):
        assert_factors(got, expected)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_no_elements_make_the_factors_of_an_empty_range(shape, axis, device):
    if not shape and axis is not None:
        pytest.skip("a 0-d tensor has no axis")
    weight = torch.zeros(shape, device=device)
    assert_factors(arq(weight, 8, axis), reference.arq(weight.cpu(), 8, axis))
    assert_factors(arq(weight, 8, axis, True), reference.arq(weight.cpu(), 8, axis, True))


def test_range_that_only_the_symmetric_form_can_hold(device):
    weight = torch.tensor([-3e38, 3e38], device=device)
    assert_factors(arq(weight), reference.arq(weight.cpu()))
    with pytest.raises(RuntimeError, match="its range within float32"):
        arq(weight, asymmetric=True)


# ---- registration, graphs ----


@pytest.mark.parametrize("axis", [None, 1])
def test_registration(axis, device):
    weight = torch.randn(3, 5, 4, device=device)[:, ::2]
    torch.library.opcheck(torch.ops.amct_pytorch.arq.default, (weight, 8, axis, True))


def test_factors_of_a_parameter_are_constants():
    scale, offset = arq(torch.nn.Parameter(torch.ones(3, 2)), axis=0)
    assert not scale.requires_grad
    assert not offset.requires_grad


def test_traced_into_a_graph():
    weight = torch.randn(3, 5).requires_grad_()
    compiled = torch.compile(lambda w: arq(w, 8, -1), fullgraph=True, backend="aot_eager")(weight)
    assert_factors(compiled, reference.arq(weight.detach(), 8, -1))


# ---- errors ----


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bad", [NAN, -NAN, INF, -INF])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_non_finite_weights_are_refused(dtype, bad, axis, device):
    for position in (0, 16, 599):
        weight = torch.randn(20, 30).to(dtype).to(device)
        weight.view(-1)[position] = bad
        with pytest.raises(RuntimeError, match="weight must be finite"):
            arq(weight, 8, axis)


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"^weight: expected dtype .*, got int32"):
        arq(torch.ones(3, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"^weight: expected a torch.Tensor, got float"):
        arq(1.0)
    with pytest.raises(ValueError, match="num_bits must be in \\[2, 16\\], got 1"):
        arq(torch.ones(3), num_bits=1)
    with pytest.raises(IndexError, match="axis 1 is out of range"):
        arq(torch.ones(3), axis=1)
