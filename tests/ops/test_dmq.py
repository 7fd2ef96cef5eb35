"""dmq_factor: the factors that move range from the channels of an activation into the weight."""

import pytest
import torch
from learnt import FLOATING
from reference import dmq_factor as expected_factors

from amct_pytorch.ops import dmq_factor

NAN, INF, EPS = float("nan"), float("inf"), 2.0**-23


def tensors(*values):
    return [torch.tensor(v) for v in values]


def test_factors_by_hand(device):
    """sqrt(4 / 2); the others bring 3 and 2 to the peaks 2 sqrt 2 of weights and activations."""
    act, weight = tensors([4.0, 0.0, 2.0, 0.0], [2.0, 3.0, 0.0, 0.0])
    got = dmq_factor(act.to(device), weight.to(device))
    assert (got.dtype, got.device.type) == (torch.float32, device)
    want = [2**0.5, 2 * 2**0.5 / 3, 0.5**0.5, 1.0]
    torch.testing.assert_close(got.cpu(), torch.tensor(want), rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("strength", "factor"),
    [(0.5, 4.0), (0.25, 0.5), (0.75, 32.0)],  # 256^s / 16^(1-s)
)
def test_strength_decides_how_much_moves(strength, factor):
    act, weight = tensors([256.0], [16.0])
    assert dmq_factor(act, weight, strength).tolist() == [factor]


@pytest.mark.parametrize("strength", [0.2, 0.37, 0.5, 0.8])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_many_channels_give_the_factors_of_the_formula(dtype, strength, device):
    generator = torch.Generator().manual_seed(0)
    act, weight = ((torch.rand(200, generator=generator) * 8 + 0.01).to(dtype) for _ in range(2))
    act[::7] = 0.0
    weight[::5] = 0.0
    got = dmq_factor(act.to(device), weight.to(device), strength)
    want = expected_factors(act.double().numpy(), weight.double().numpy(), strength)
    assert got.cpu().tolist() == want.tolist()


def test_balanced_channels_have_equal_ranges_at_strength_one_half():
    act, weight = tensors([8.0, 0.5, 3.0], [0.25, 4.0, 0.1])
    factor = dmq_factor(act, weight)
    torch.testing.assert_close(act / factor, weight * factor)


@pytest.mark.parametrize(
    ("act", "weight"),
    [
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([EPS / 2, 0.0], [1.0, 2.0]),  # below 2^-23 is zero
        ([1.0, 0.0], [0.0, 2.0]),  # no channel has both
        ([], []),
    ],
)
def test_nothing_to_balance_gives_ones(act, weight, device):
    got = dmq_factor(torch.tensor(act, device=device), torch.tensor(weight, device=device))
    assert got.tolist() == [1.0] * len(act)


def test_two_dtypes_strides_and_values_that_want_gradients():
    act = torch.tensor([4.0, 9.0, 1.0, 9.0], requires_grad=True)[::2]
    weight = torch.tensor([1.0, 4.0], dtype=torch.float16)
    got = dmq_factor(act, weight)
    assert (got.tolist(), got.requires_grad) == ([2.0, 0.5], False)


@pytest.mark.parametrize("large", [[1e20, 1.0], [1.0, 1e20]])
def test_factors_out_of_range(large, device):
    act, weight = torch.tensor([large[0]], device=device), torch.tensor([large[1]], device=device)
    with pytest.raises(RuntimeError, match=r"factor of channel 0 must be in \(1.19209e-07, 8.388"):
        dmq_factor(act, weight)


@pytest.mark.parametrize("value", [NAN, INF, -1.0])
@pytest.mark.parametrize("name", ["act_max", "weight_max"])
def test_no_magnitudes(name, value, device):
    values = {"act_max": torch.ones(3, device=device), "weight_max": torch.ones(3, device=device)}
    values[name][1] = value
    with pytest.raises(RuntimeError, match=f" {name} must hold finite .*channel 1"):
        dmq_factor(**values)


def test_wrong_arguments():
    one = torch.ones(3)
    with pytest.raises(TypeError, match=r"^act_max: expected dtype .*, got float64"):
        dmq_factor(one.double(), one)
    with pytest.raises(TypeError, match=r"^weight_max: expected a torch.Tensor, got list"):
        dmq_factor(one, [1.0])
    with pytest.raises(ValueError, match="weight_max must have the length of act_max, 3, got 2"):
        dmq_factor(one, torch.ones(2))
    with pytest.raises(RuntimeError, match="act_max must have 1 dimension, got 2"):
        dmq_factor(torch.ones(1, 3), one)
    for strength in (0.19, 0.81, NAN):
        with pytest.raises(ValueError, match=r"migration_strength must be in \[0.2, 0.8\], got"):
            dmq_factor(one, one, strength)


def test_registration(device):
    op = torch.ops.amct_pytorch.dmq_factor.default
    ones = torch.ones(3, device=device)
    torch.library.opcheck(op, (ones, ones.half(), 0.5))


def test_traced_into_a_graph(device):
    act, weight = (torch.rand(9, device=device) + 0.1 for _ in range(2))
    compiled = torch.compile(lambda act: dmq_factor(act, weight), fullgraph=True)
    assert torch.equal(compiled(act), dmq_factor(act, weight))
