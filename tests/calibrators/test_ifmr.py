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


MANY = 66_000  # beyond the number of values that are kept one by one


@pytest.mark.parametrize("asymmetric", [True, False], ids=["asymmetric", "symmetric"])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_split_order_and_merge_of_many_values_do_not_matter(asymmetric, data):
    x = example("student_t3", MANY, seed=data.draw(st.integers(0, 9)))
    cuts = data.draw(st.lists(st.integers(1, MANY - 1), unique=True, max_size=4))
    batches = data.draw(st.permutations(x.tensor_split(sorted(cuts))))
    merged_from = data.draw(st.integers(0, len(batches)))

    calibrator = calibrated(batches[:merged_from], asymmetric=asymmetric)
    calibrator.merge(calibrated(batches[merged_from:], asymmetric=asymmetric))
    assert_same(calibrator.compute(), ifmr(x, asymmetric=asymmetric))


@pytest.mark.parametrize(
    ("options", "keeps_values"),
    [
        ({}, False),
        ({"num_bits": 4}, False),
        ({"max_percentile": 1 - 2**-16}, False),
        ({"num_bits": 9}, True),
        ({"max_percentile": 0.9999}, True),
        ({"axis": 0}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [65536, 65537])
def test_values_are_kept_while_few_or_where_a_sketch_would_not_do(options, keeps_values, n):
    x = example("normal", n).view(1, n)
    calibrator = calibrated(x.split(30_000, dim=1), **options)
    assert ("values" in calibrator.state_dict()) == (keeps_values or n == 65536)
    assert_same(calibrator.compute(), ifmr(x, **options))


def test_states_of_any_split_are_equal():
    x = example("normal", 3 * MANY)
    expected = calibrated([x]).state_dict()
    for batches in (x.flip(0).split(50_000), x.split(MANY)):
        state = calibrated(batches).state_dict()
        assert state.keys() == expected.keys()
        assert_same(state.values(), expected.values())


def test_counts_of_equal_values_do_not_saturate():
    x = example("relu", MANY)
    calibrator = calibrated([x], max_percentile=1.0, min_percentile=1.0)
    for _ in range(12):
        calibrator.merge(calibrator)
    assert calibrator.state_dict()["counts"].max() == 2**12 * (x == 0).sum() > 2**25
    assert_same(calibrator.compute(), ifmr(x, max_percentile=1.0, min_percentile=1.0))


def test_certified():
    calibrator = IFMR()
    assert calibrator.certified is None
    for n in (1000, MANY):
        calibrator.update(example("normal", n))
        calibrator.compute()
        assert calibrator.certified is True


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels(axis):
    x = example("normal", 4 * 4 * 50).view(4, 4, 50)
    calibrator = calibrated(x.split(2, dim=2 if axis != -1 else 0), axis=axis)
    assert_same(calibrator.compute(), ifmr(x, axis=axis))


def test_channels_of_a_vector():
    calibrator = IFMR(axis=-1)
    calibrator.update(torch.tensor([0.0, 255.0]))
    calibrator.update(torch.tensor([255.0, 0.0]))
    assert calibrator.compute()[0].tolist() == [1.0, 1.0]


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
    x = example("normal", MANY)
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
@pytest.mark.parametrize("n", [N, MANY])
def test_copies_are_independent(copied, n):
    x = example("normal", n)
    calibrator = calibrated([x])
    twin = copied(calibrator)
    twin.update(torch.full((3,), 9.0))
    assert_same(calibrator.compute(), ifmr(x))
    assert_same(twin.compute(), ifmr(torch.cat([x, torch.full((3,), 9.0)])))


@pytest.mark.parametrize("n", [N, MANY])
def test_state_dict(n):
    x = example("normal", n)
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


@pytest.mark.parametrize("n", [N, MANY])
def test_defaults_of_torch_play_no_part(n):
    x = example("normal", n)
    batches = [x, x + 1]
    expected = calibrated(batches).compute()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        factors = calibrated(batches).compute()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same(factors, expected)


# ---- errors ----


def test_nothing_to_compute():
    with pytest.raises(RuntimeError, match="call update first"):
        IFMR().compute()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [3, MANY])
def test_batch_that_raises_leaves_the_state(value, n):
    x = example("normal", n)
    calibrator = calibrated([x])
    for batch in (torch.tensor([3.0, value]), torch.full((MANY,), value)):
        with pytest.raises(RuntimeError, match="finite"):
            calibrator.update(batch)
    assert_same(calibrator.compute(), ifmr(x))


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


@pytest.mark.parametrize(
    "state",
    [
        {"junk": torch.zeros(1)},
        {"values": torch.zeros(3)},
        {"values": torch.zeros(2, 3)},
        {"values": torch.zeros(1, 3), "counts": torch.zeros(1)},
    ],
    ids=["unknown", "flat", "two rows", "mixed"],
)
def test_a_state_of_another_calibrator_is_refused(state):
    calibrator = IFMR()
    calibrator.update(torch.ones(3))
    before = calibrator.compute()
    with pytest.raises(ValueError, match="state: expected"):
        calibrator.load_state_dict(state)
    assert calibrator.compute() == before


def test_a_sketch_is_refused_with_an_axis():
    calibrator = IFMR()
    calibrator.update(torch.randn(70000))
    with pytest.raises(ValueError, match="state: expected"):
        IFMR(axis=0).load_state_dict(calibrator.state_dict())


def test_merging_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="other: expected an IFMR, got int"):
        IFMR().merge(3)
