"""IFMR over batches: bit for bit the op on the concatenation, whatever the batches."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_calibration import example

from amct_pytorch.calibrators import IFMR
from amct_pytorch.ops import ifmr

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
N = 3000
WAYS = {
    "default": {},
    "symmetric": {"asymmetric": False},
    "low percentile": {"max_percentile": 0.9, "min_percentile": 0.95},
    "16 bits": {"num_bits": 16},
}


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


def calibrated(batches, **options):
    calibrator = IFMR(**options)
    for batch in batches:
        calibrator.update(batch)
    return calibrator


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_split_order_and_merge_do_not_matter(options, data):
    x = example("student_t3", N, seed=data.draw(st.integers(0, 9)))
    cuts = data.draw(st.lists(st.integers(1, N - 1), unique=True, max_size=6))
    batches = x.tensor_split(sorted(cuts))
    batches = data.draw(st.permutations(batches))
    merged_from = data.draw(st.integers(0, len(batches)))

    calibrator = calibrated(batches[:merged_from], **options)
    calibrator.merge(calibrated(batches[merged_from:], **options))
    assert_same(calibrator.compute(), ifmr(x, **options))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels(axis):
    x = example("normal", 4 * 4 * 50).view(4, 4, 50)
    calibrator = calibrated(x.split(2, dim=2 if axis != -1 else 0), axis=axis)
    assert_same(calibrator.compute(), ifmr(x, axis=axis))


def test_another_number_of_channels():
    calibrator = calibrated([torch.ones(2, 3)], axis=1)
    with pytest.raises(RuntimeError, match="expected 3 channels in dimension 1"):
        calibrator.update(torch.ones(2, 4))


@pytest.mark.parametrize("dtypes", [[torch.float16, torch.float16], [torch.bfloat16, torch.float]])
def test_dtypes_may_differ_between_batches(dtypes):
    batches = [example("normal", N).to(dtype) for dtype in dtypes]
    assert_same(calibrated(batches).compute(), ifmr(torch.cat(batches)))


@pytest.mark.parametrize("device", DEVICES)
def test_factors_are_on_the_device_of_the_last_batch(device):
    calibrator = calibrated([torch.ones(3), torch.ones(3, device=device)])
    assert {factor.device.type for factor in calibrator.compute()} == {device}


def test_batches_may_be_overwritten():
    x = torch.tensor([1.0, 2.0])
    calibrator = calibrated([x])
    x.fill_(7)
    assert_same(calibrator.compute(), ifmr(torch.tensor([1.0, 2.0])))


def test_compute_may_be_repeated_and_continued():
    x = example("normal", N)
    calibrator = calibrated([x[:100]])
    assert_same(calibrator.compute(), ifmr(x[:100]))
    calibrator.update(x[100:])
    assert_same(calibrator.compute(), ifmr(x))
    assert_same(calibrator.compute(), ifmr(x))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda calibrator: pickle.loads(pickle.dumps(calibrator)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_are_independent(copied):
    calibrator = calibrated([torch.ones(3)])
    twin = copied(calibrator)
    twin.update(torch.full((3,), 9.0))
    assert_same(calibrator.compute(), ifmr(torch.ones(3)))
    assert_same(twin.compute(), ifmr(torch.tensor([1.0, 9.0])[[0, 0, 0, 1, 1, 1]]))


def test_state_dict():
    x = example("normal", N)
    calibrator = calibrated(x.split(1000))
    state = calibrator.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = IFMR()
    other.load_state_dict(state)
    calibrator.update(torch.full((5,), 100.0))
    assert_same(other.compute(), ifmr(x))


def test_reset():
    calibrator = calibrated([torch.full((3,), 9.0)])
    calibrator.reset()
    calibrator.update(torch.ones(3))
    assert_same(calibrator.compute(), ifmr(torch.ones(3)))


# ---- errors ----


def test_nothing_to_compute():
    with pytest.raises(RuntimeError, match="call update first"):
        IFMR().compute()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_batch_that_raises_leaves_the_state(value):
    calibrator = calibrated([torch.ones(3)])
    with pytest.raises(RuntimeError, match="finite"):
        calibrator.update(torch.tensor([3.0, value]))
    assert_same(calibrator.compute(), ifmr(torch.ones(3)))


def test_batches_that_are_refused():
    with pytest.raises(TypeError, match=r"^x: expected dtype"):
        IFMR().update(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^x: expected at least one element"):
        IFMR().update(torch.ones(0))


@pytest.mark.parametrize(
    "options",
    [{"num_bits": 1}, {"max_percentile": 0.5}, {"search_range": (1.0, 0.5)}, {"search_step": 0.0}],
    ids=str,
)
def test_bad_options_are_refused_at_once(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        IFMR(**options)


def test_merge_of_other_options():
    with pytest.raises(ValueError, match="num_bits=4"):
        IFMR().merge(calibrated([torch.ones(3)], num_bits=4))
