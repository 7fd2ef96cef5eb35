"""search_shift: the shift of 32-bit accumulators stored as 16 bits."""

import numpy as np
import pytest
import torch
from layouts import LAYOUTS
from learnt import FLOATING, assert_no_host_reads

from amct_pytorch.ops import search_shift, shift_errors, shift_of_errors

NAN, INF = float("nan"), float("inf")
one = torch.tensor(1.0)


def expected_errors(values, scale):
    """Of one channel, in numpy."""
    values = values.detach().cpu().float().numpy().astype(np.float64).ravel()
    s32 = np.clip(np.rint(values / np.float64(scale)), -(2**31), 2**31 - 1)
    units = 2.0 ** np.arange(1, 17)[:, None]
    s16 = np.clip(np.floor(s32 / units), -(2**15), 2**15 - 1)
    return ((s32 - s16 * units) ** 2).sum(axis=1)


def assert_errors(got, rows):
    assert (got.dtype, got.shape) == (torch.float64, (len(rows), 16))
    torch.testing.assert_close(got.cpu(), torch.from_numpy(np.stack(rows)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("value", "shift"),
    [
        (0.0, 16),  # nothing is lost: the largest of equals
        (1.0, 16),  # floor makes 0 of it, by any shift
        (-1.0, 1),  # floor makes -2^N of it
        (65536.0, 16),
        (-65536.0, 16),
        (32768.0, 15),
        (65535.0, 1),
        (65536.0 * 3 + 8, 3),
        (65536.0 * 32767, 16),
        (1e12, 16),  # int32 ends at 2^31 - 1
    ],
)
def test_values_by_hand(value, shift, device):
    got = search_shift(torch.tensor([value], device=device), one.to(device))
    assert (got.dtype, got.tolist()) == (torch.int32, [shift])


def test_errors_by_hand(device):
    """7 is 3 * 2 + 1, 1 * 4 + 3, 0 * 8 + 7; -3 is -2 * 2 + 1, -1 * 4 + 1, -1 * 8 + 5."""
    got = shift_errors(torch.tensor([3.5, -1.5], device=device), one.to(device) / 2)
    assert got[0, :4].tolist() == [1 + 1, 9 + 1, 49 + 25, 49 + 169]


@pytest.mark.parametrize("axis", [None, 0, 1, -1], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout_gives_the_errors_of_the_formula(dtype, layout, axis, device):
    out = LAYOUTS[layout]((torch.randn(3, 5, 4, 7) * 9).to(dtype).to(device))
    scale = 10 ** (-6 * torch.rand([1] if axis is None else [out.size(axis)])) / 10
    rows = [out] if axis is None else out.unbind(axis)
    got = shift_errors(out, scale.to(device), axis)
    assert_errors(got, [expected_errors(row, s) for row, s in zip(rows, scale, strict=True)])
    assert_same_shifts(out, scale.to(device), axis, got)


def assert_same_shifts(out, scale, axis, errors):
    """The last of the least errors, counted from 1."""
    rows = errors.tolist()
    want = [max(n for n, error in enumerate(row, 1) if error == min(row)) for row in rows]
    assert search_shift(out, scale, axis).tolist() == want


@pytest.mark.parametrize("shape", [(4, 300, 70), (300, 70), (30000, 3), (3, 50000)], ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_threads_do_not_change_bits(axis, shape, with_threads):
    out = torch.randn(shape) * 1e5
    scale = torch.rand([] if axis is None else shape[axis]) + 0.1
    results = with_threads(lambda: shift_errors(out, scale, axis))
    assert all(torch.equal(result, results[0]) for result in results)
    rows = [out] if axis is None else out.unbind(axis)
    scales = scale.reshape(-1)
    assert_errors(results[0], [expected_errors(r, s) for r, s in zip(rows, scales, strict=True)])


def test_errors_of_batches_add_up(device):
    out = torch.randn(8, 5, device=device) * 1e5
    scale = torch.rand(5, device=device) + 0.1
    parts = [shift_errors(part, scale, 1) for part in out.split(3)]
    torch.testing.assert_close(sum(parts), shift_errors(out, scale, 1), rtol=1e-12, atol=0)


def test_ties_go_to_the_larger_shift():
    errors = torch.ones(4, 16, dtype=torch.float64)
    errors[1, :2] = 0.0
    errors[2, 0] = errors[2, 9] = 0.5
    errors[3] = NAN
    assert shift_of_errors(errors).tolist() == [16, 2, 10, 16]


def test_nan_and_infinity(device):
    one_ = one.to(device)
    assert shift_errors(torch.tensor([NAN, 1.0], device=device), one_).isnan().all()
    ends = torch.tensor([2147483648.0, -2147483648.0], device=device)
    infinite = torch.tensor([INF, -INF], device=device)
    assert torch.equal(shift_errors(infinite, one_), shift_errors(ends, one_))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_no_elements(shape, device):
    assert search_shift(torch.zeros(shape, device=device), one.to(device)).tolist() == [16]


def test_registration(device):
    out = torch.randn(3, 5, 4, device=device)[:, ::2]
    check, op = torch.library.opcheck, torch.ops.amct_pytorch.shift_errors.default
    check(op, (out, one.to(device), None))
    check(op, (out, torch.ones(4, device=device), -1))


def test_traced_into_a_graph(device):
    out, scale = torch.randn(40, 5, device=device) * 1e4, torch.rand(5, device=device) + 0.1
    compiled = torch.compile(lambda out: search_shift(out, scale, 1), fullgraph=True)
    assert torch.equal(compiled(out), search_shift(out, scale, 1))
    assert_no_host_reads(lambda: search_shift(out, scale, 1))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"^out: expected dtype .*, got int32"):
        search_shift(torch.ones(3, dtype=torch.int32), one)
    with pytest.raises(TypeError, match=r"^deq_scale: expected dtype float32, got float64"):
        search_shift(torch.ones(3), one.double())
    with pytest.raises(TypeError, match=r"^errors: expected dtype float64, got float32"):
        shift_of_errors(torch.ones(1, 16))
    with pytest.raises(RuntimeError, match="errors must have shape"):
        shift_of_errors(torch.ones(16, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="deq_scale must have 3 elements, got 1"):
        search_shift(torch.ones(2, 3), one, axis=1)
    with pytest.raises(IndexError, match="axis 2 is out of range"):
        search_shift(torch.ones(2, 3), one, axis=2)
