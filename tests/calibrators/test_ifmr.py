"""IFMR over batches: bit for bit the op on the concatenation, whatever the batches."""

import copy
import pickle

import pytest
import reference_calibration as reference
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


FORMS = {
    "defaults": ({}, torch.float32, 2**16, "sums"),
    "4 bits": ({"num_bits": 4}, torch.float32, 2**16, "sums"),
    "low percentile": ({"max_percentile": 0.9}, torch.float32, 2**16, "sums"),
    "float16": ({}, torch.float16, 2**16, "float16_counts"),
    "bfloat16": ({"max_percentile": 0.9}, torch.bfloat16, 2**16, "bfloat16_counts"),
    "9 bits": ({"num_bits": 9}, torch.float32, 2**20, "sums"),
    "axis": ({"axis": 0}, torch.float32, 2**22, "sums"),
    "axis of float16": ({"axis": 0}, torch.float16, 2**22, "sums"),
}


@pytest.mark.parametrize(("options", "dtype", "most", "key"), FORMS.values(), ids=FORMS)
def test_values_are_kept_while_they_are_few(options, dtype, most, key):
    x = example("normal", most + 2).to(dtype).view(2, -1)
    calibrator = calibrated(x[:, :-1].split(most // 4, dim=1), **options)
    assert set(calibrator.state_dict()) == {"values"}
    assert_same(calibrator.compute(), ifmr(x[:, :-1], **options))
    assert calibrator.certified
    calibrator.update(x[:, -1:])
    assert key in calibrator.state_dict()
    if calibrator.compute() and calibrator.certified:
        assert_same(calibrator.compute(), ifmr(x, **options))


@pytest.mark.parametrize("axis", [None, 0], ids=str)
def test_states_of_any_split_are_equal(axis):
    x = example("student_t3", 2**22 + 4).view(4, -1)
    expected = calibrated([x], axis=axis).state_dict()
    assert "sums" in expected
    parts = x.flip(1).split(170_000, dim=1)
    merged = calibrated(parts[:3], axis=axis)
    merged.merge(calibrated(parts[3:], axis=axis))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = calibrated(parts[::-1], axis=axis)
    torch.set_num_threads(before)
    for calibrator in (merged, alone):
        state = calibrator.state_dict()
        assert state.keys() == expected.keys()
        assert_same(state.values(), expected.values())


def test_states_of_any_mixture_of_dtypes_are_equal():
    parts = [example(name, MANY) for name in ("normal", "student_t3", "relu")]
    parts = [parts[0].half(), parts[1], parts[2].bfloat16(), parts[0][:5].half() * 100]
    expected = calibrated([torch.cat([part.float() for part in parts])])
    for batches in (parts, parts[::-1], [parts[3], *parts[:3]]):
        assert_same(calibrated(batches).state_dict().values(), expected.state_dict().values())
    merged = calibrated([parts[0], parts[3]])
    merged.merge(calibrated([parts[2]]))
    merged.merge(calibrated([parts[1]]))
    assert_same(merged.state_dict().values(), expected.state_dict().values())


def test_counts_of_equal_values_do_not_saturate():
    x = example("relu", MANY)
    calibrator = calibrated([x], max_percentile=1.0, min_percentile=1.0)
    for _ in range(12):
        calibrator.merge(calibrator)
    assert calibrator.state_dict()["counts"].max() == 2**12 * (x == 0).sum() > 2**25
    calibrator.compute()
    if calibrator.certified:
        assert_same(calibrator.compute(), ifmr(x, max_percentile=1.0, min_percentile=1.0))


def test_certified():
    calibrator = IFMR()
    assert calibrator.certified is None
    for n in (1000, MANY):
        calibrator.update(example("normal", n))
        calibrator.compute()
        assert calibrator.certified is True


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "student_t3", "binary", "tiny"])
def test_a_choice_that_is_certified_is_that_of_the_op(name):
    certified = 0
    for seed in range(5):
        x = example(name, 100_000, seed)
        calibrator = calibrated([x])
        factors = calibrator.compute()
        if calibrator.certified:
            certified += 1
            assert_same(factors, ifmr(x))
    assert certified >= 3


def test_a_choice_that_is_not_certified_is_near_the_least_loss():
    x = example("normal", 100_000)
    calibrator = calibrated([x], search_step=1e-4)
    scale, _ = calibrator.compute()
    assert calibrator.certified is False
    candidates = reference.ifmr_candidates(*reference.ifmr_range(x))
    best = min(reference.ifmr_losses(x, candidates))
    own = [c for c in reference.ifmr_candidates(*reference.ifmr_range(x), search_step=1e-4)
           if c[2] == scale]  # fmt: skip
    assert reference.ifmr_losses(x, own)[0] < best * (1 + 1e-4)


def test_a_choice_that_outliers_hide_is_not_certified():
    x = torch.cat([example("normal", MANY), torch.full((2,), 1e20)])
    calibrator = calibrated([x], max_percentile=0.9999)
    calibrator.compute()  # whose losses all round to 2e40
    assert calibrator.certified is False


@pytest.mark.parametrize(
    ("percentile", "is_exact"), [(1 - 2**-4, True), (0.51, False)], ids=["few", "many"]
)
def test_ends_are_exact_while_few_values_lie_beyond(percentile, is_exact):
    x = example("normal", 2**18) * 0.7
    options = {"max_percentile": percentile, "min_percentile": percentile, "num_bits": 2}
    calibrator = calibrated(x.split(100_000), **options)
    scale, offset = calibrator.compute()
    expected = ifmr(x, **options)
    assert calibrator.certified is is_exact
    assert offset == expected[1]
    if is_exact:
        assert scale == expected[0]
    else:  # the width of a bucket
        assert scale.item() == pytest.approx(expected[0].item(), abs=2**-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_bits": 16},
        {"max_percentile": 0.6, "min_percentile": 0.6},
        {"axis": 1},
        {"axis": 1, "num_bits": 16, "max_percentile": 0.6},
    ],
    ids=str,
)
def test_state_is_bounded(options):
    calibrator = IFMR(**options)
    channels = 4096 if "axis" in options else 8
    for seed in range(3):
        calibrator.update(example("normal", 2**21, seed).view(-1, channels))
    size = sum(tensor.nbytes for tensor in calibrator.state_dict().values())
    assert size < (2 * 2**20 if not options else 64 * 2**20)


def test_channels_beyond_the_values_kept():
    x = example("student_t3", 2**22 + 4).view(-1, 4) * torch.tensor([1.0, 1e-3, 1e6, 0.0])
    calibrator = calibrated(x.split(300_000), axis=1)
    assert "sums" in calibrator.state_dict()
    assert_same(calibrator.compute(), ifmr(x, axis=1))
    assert calibrator.certified


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


@pytest.mark.parametrize(
    ("x", "name", "damage"),
    [
        (torch.ones(3), "values", lambda t: t.double()),
        (torch.ones(3), "values", lambda t: t * torch.nan),
        (torch.ones(3), "values", lambda t: t.tolist()),
        (torch.ones(3), "values", lambda t: t.repeat(1, 2**16)),
        (torch.ones(MANY).half(), "float16_counts", lambda t: t.int()),
        (torch.ones(MANY).half(), "float16_counts", lambda t: t * 0),
        (torch.ones(MANY).half(), "float16_counts", lambda t: t - 1),
        (torch.ones(MANY).half(), "float16_counts", lambda t: t.roll(0x4000)),  # 1 to infinity
        (torch.ones(MANY), "tops", lambda t: t + 2**40),
        (torch.ones(MANY), "tops", lambda t: t - 2**40),
        (torch.ones(MANY), "counts", lambda t: t * 0),
        (torch.ones(MANY), "counts", lambda t: -t),
        (torch.ones(MANY), "sums", lambda t: t - 1),
        (torch.ones(MANY), "high", lambda t: t * torch.nan),
        (torch.ones(MANY), "high", lambda t: t.cumsum(1)),
        (torch.ones(MANY), "low", lambda t: t + 1),
    ],
)
def test_a_damaged_state_is_refused(x, name, damage):
    calibrator = calibrated([x])
    state, before = calibrator.state_dict(), calibrator.compute()
    calibrator.load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected"):
        calibrator.load_state_dict({**state, name: damage(state[name])})
    assert calibrator.compute() == before


def test_a_state_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match="state: expected .*, got list"):
        IFMR().load_state_dict([])


def test_as_many_equal_values_as_one_thread_may_count():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.full((2**24,), 5.0)
    assert calibrated([x]).state_dict()["counts"].sum() == len(x)
    torch.set_num_threads(before)


def test_a_sketch_of_other_options_is_refused():
    state = calibrated([torch.randn(2, 2**22)], axis=0).state_dict()
    for other in (IFMR(), IFMR(axis=0, num_bits=16), IFMR(axis=0, max_percentile=0.9)):
        with pytest.raises(ValueError, match="state: expected"):
            other.load_state_dict(state)


def test_counts_are_refused_with_an_axis():
    state = calibrated([torch.randn(70_000).half()]).state_dict()
    with pytest.raises(ValueError, match=r"state: expected .*, got float16_counts int64 \[65536\]"):
        IFMR(axis=0).load_state_dict(state)


def test_merging_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="other: expected an IFMR, got int"):
        IFMR().merge(3)
