"""HFMG over batches: a histogram whose range grows, in the published arithmetic."""

import copy
import pickle

import pytest
import reference_calibration as reference
import torch
from reference_calibration import example

from amct_pytorch.calibrators import HFMG
from amct_pytorch.ops import hfmg

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


def calibrated(batches, **options):
    calibrator = HFMG(**options)
    for batch in batches:
        calibrator.update(batch)
    return calibrator


SEQUENCES = {
    "growing": [example("normal", 5000, i) * (1 + i) for i in range(4)],
    "shrinking": [example("normal", 5000, i) / (1 + i) for i in range(4)],
    "moving": [example("relu", 5000, i) + 0.3 * i for i in range(4)],
    "same": [torch.linspace(-1, 2, 5000)] * 3,
    "constant first": [torch.full((10,), 2.0), torch.full((7,), 2.0), example("normal", 5000)],
    "constant on the edge": [torch.ones(10), torch.linspace(0, 1, 5000)],
    "far from zero": [1e6 + example("normal", 5000, i) * (1 + i) for i in range(2)],
    "one by one": [torch.tensor([v]) for v in (0.0, 1.0, -1.0, 3.0, 0.5)],
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("num_bits", [4, 8])
def test_sequence_of_batches(name, num_bits):
    first, *rest = SEQUENCES[name]
    expected = reference.hfmg_histogram(first, 1024)
    for batch in rest:
        expected = reference.hfmg_merged(expected, batch)

    calibrator = calibrated([first, *rest], num_bits=num_bits, num_of_bins=1024)
    state = calibrator.state_dict()
    assert state["ranges"].tolist() == [[expected[0].item(), expected[1].item()]]
    assert state["counts"].tolist() == [expected[2]]
    scale, offset = calibrator.compute()
    assert (scale.item(), offset.item()) == reference.hfmg_search(expected, num_bits)


@pytest.mark.parametrize("axis", [None, 0, -1], ids=str)
def test_one_batch_is_the_op(axis):
    x = example("normal", 4 * 500).view(4, 500)[:, :7]
    assert_same(calibrated([x], axis=axis).compute(), hfmg(x, axis=axis))


def test_channels_are_sequences_of_their_own():
    batches = [example("normal", 3 * 400, i).view(3, 400) * (1 + i) for i in range(3)]
    scale, offset = calibrated(batches, axis=0).compute()
    for c in range(3):
        own = calibrated([batch[c] for batch in batches]).compute()
        assert_same((scale[c], offset[c]), own)


def test_another_number_of_channels():
    calibrator = calibrated([torch.ones(2, 3)], axis=1)
    with pytest.raises(RuntimeError, match="expected 3 channels in dimension 1"):
        calibrator.update(torch.ones(2, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_device_and_threads(device, threads):
    batches = [example("student_t3", 70_000, i) for i in range(3)]
    expected = calibrated(batches).state_dict()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    calibrator = calibrated([batch.to(device) for batch in batches])
    torch.set_num_threads(before)
    assert_same(calibrator.state_dict().values(), expected.values())
    assert {factor.device.type for factor in calibrator.compute()} == {device}


def test_merge_of_equal_ranges_adds_the_counts():
    x = torch.linspace(-1, 2, 5000)
    calibrator = calibrated([x])
    calibrator.merge(calibrated([x, x]))
    assert_same(calibrator.state_dict().values(), calibrated([x] * 3).state_dict().values())


def test_merge_widens_the_range_and_keeps_every_value():
    calibrator = calibrated([example("normal", 5000)])
    calibrator.merge(calibrated([example("normal", 3000, 1) * 5]))
    (lo, hi), counts = calibrator.state_dict()["ranges"][0], calibrator.state_dict()["counts"]
    assert lo == (example("normal", 3000, 1) * 5).min()
    assert hi == (example("normal", 3000, 1) * 5).max()
    assert counts.sum() == 8000


def test_merge_with_nothing():
    calibrator = calibrated([torch.ones(3)])
    calibrator.merge(HFMG())
    assert_same(calibrator.compute(), hfmg(torch.ones(3)))
    empty = HFMG()
    empty.merge(calibrator)
    assert_same(empty.compute(), hfmg(torch.ones(3)))


def test_merge_of_other_options():
    with pytest.raises(ValueError, match="'num_bits': 4"):
        HFMG().merge(calibrated([torch.ones(3)], num_bits=4))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda calibrator: pickle.loads(pickle.dumps(calibrator)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_are_independent(copied):
    calibrator = calibrated([torch.ones(3)])
    twin = copied(calibrator)
    twin.update(torch.full((3,), 9.0))
    assert_same(calibrator.compute(), hfmg(torch.ones(3)))
    assert_same(twin.compute(), calibrated([torch.ones(3), torch.full((3,), 9.0)]).compute())


def test_state_dict_and_reset():
    calibrator = calibrated([example("normal", 500)])
    other = HFMG()
    other.load_state_dict(calibrator.state_dict())
    calibrator.reset()
    assert_same(other.compute(), hfmg(example("normal", 500)))
    calibrator.update(torch.ones(3))
    assert_same(calibrator.compute(), hfmg(torch.ones(3)))


def test_defaults_of_torch_play_no_part():
    expected = calibrated([torch.ones(3)]).compute()
    x = torch.ones(3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        factors = calibrated([x]).compute()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same(factors, expected)


# ---- errors ----


def state(lo=-1.0, hi=1.0, rows=1, bins=4096, count=1):
    return {"ranges": torch.tensor([[lo, hi]] * rows), "counts": torch.full((rows, bins), count)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (state(bins=1024), "4096 bins, got 1 and 1024"),
        (state(rows=2), "1 channels .* got 2"),
        (state(bins=0), "num_of_bins"),
        (state(lo=float("nan")), "ranges must be finite"),
        (state(hi=float("inf")), "ranges must be finite"),
        (state(count=-1), "counts must not be negative"),
        ({"ranges": torch.ones(1, 2), "counts": torch.ones(1, 4096)}, "Long but found Float"),
        ({"ranges": torch.ones(1, 2)}, "counts"),
    ],
    ids=["bins", "channels", "no bins", "nan", "inf", "negative", "dtype", "key"],
)
def test_state_that_does_not_fit(wrong, message):
    calibrator = calibrated([torch.ones(3)])
    with pytest.raises((KeyError, RuntimeError, ValueError), match=message):
        calibrator.load_state_dict(wrong)
    assert_same(calibrator.compute(), hfmg(torch.ones(3)))


def test_empty_state():
    calibrator = calibrated([torch.ones(3)])
    calibrator.load_state_dict(HFMG().state_dict())
    with pytest.raises(RuntimeError, match="call update first"):
        calibrator.compute()


def test_nothing_to_compute():
    with pytest.raises(RuntimeError, match="call update first"):
        HFMG().compute()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_batch_that_raises_leaves_the_state(value):
    calibrator = calibrated([torch.full((3,), -1e38)])
    with pytest.raises(RuntimeError, match=r"finite|float32 cannot hold"):
        calibrator.update(torch.tensor([3.0, value]))
    assert_same(calibrator.compute(), hfmg(torch.full((3,), -1e38)))


def test_batches_that_are_refused():
    with pytest.raises(TypeError, match=r"^x: expected dtype"):
        HFMG().update(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least one element"):
        HFMG().update(torch.ones(0))


@pytest.mark.parametrize("options", [{"num_bits": 1}, {"num_of_bins": 1000}], ids=str)
def test_bad_options_are_refused_at_once(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HFMG(**options)
