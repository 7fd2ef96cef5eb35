"""Records.diff: what two records do not have alike."""

import math

import pytest

from amct_pytorch.records import KVCacheRecord, LayerRecord, Records


def lines(first, second, rtol=0.0):
    return [str(difference) for difference in first.diff(second, rtol)]


def layer(**fields):
    return Records({"conv": LayerRecord(**fields)})


def test_equal_records_do_not_differ():
    records = Records({"a": LayerRecord(0.1)}, {"a": (1, 2)}, "x", {"a": KVCacheRecord()}, "p")
    diff = records.diff(records)
    assert not diff
    assert list(diff) == []
    assert str(diff) == "no difference"


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        ({"scale_d": 0.024}, {"scale_d": 0.025}, "conv.scale_d: 0.024 -> 0.025 (+4.17 %)"),
        ({"scale_d": 2.0}, {"scale_d": 1.5}, "conv.scale_d: 2.0 -> 1.5 (-25 %)"),
        ({"scale_d": 0.0}, {"scale_d": 1.0}, "conv.scale_d: 0.0 -> 1.0"),
        ({"scale_d": 1.0}, {"scale_d": math.nan}, "conv.scale_d: 1.0 -> nan"),
        ({"scale_d": 1.0}, {}, "conv.scale_d: 1.0 -> absent"),
        ({"offset_d": -8}, {"offset_d": -7}, "conv.offset_d: -8 -> -7"),
        ({"skip_fusion": True}, {"skip_fusion": False}, "conv.skip_fusion: true -> false"),
        ({"act_type": "INT8"}, {"act_type": "INT16"}, "conv.act_type: INT8 -> INT16"),
        (
            {"scale_w": (1.0, 2.0, 4.0)},
            {"scale_w": (1.0, 2.5, 3.0)},
            "conv.scale_w: 2 of 3 differ, most at [1]: 2.0 -> 2.5 (+25 %)",
        ),
        (
            {"offset_w": (0, 0)},
            {"offset_w": (0, 1)},
            "conv.offset_w: 1 of 2 differ, most at [1]: 0 -> 1",
        ),
        (
            {"scale_w": (1.0, 2.0)},
            {"scale_w": (1.0,)},
            "conv.scale_w: 2 entries -> 1 entry",
        ),
        ({"scale_w": (1.0, 2.0)}, {}, "conv.scale_w: 2 entries -> absent"),
    ],
    ids=str,
)
def test_a_field_that_differs_is_one_line(first, second, line):
    first, second = {"offset_h": 1, **first}, {"offset_h": 1, **second}
    assert lines(layer(**first), layer(**second)) == [line]


def test_layers_of_one_record_only():
    both, first, second = (LayerRecord(scale_d=x) for x in (1.0, 2.0, 3.0))
    found = lines(Records({"a": both, "b": first}), Records({"c": second, "a": both}))
    assert found == ["b: only in the first", "c: only in the second"]


def test_the_order_of_layers_does_not_matter():
    a, b = LayerRecord(1.0), LayerRecord(2.0)
    assert not Records({"a": a, "b": b}).diff(Records({"b": b, "a": a}))


def test_factors_of_caches_progress_and_pruning_are_compared():
    first = Records({}, {"k": (1, 2)}, kv_cache={"k": KVCacheRecord((0.5,), (0,))})
    second = Records({}, kv_cache={"k": KVCacheRecord((1.0,), (0,))}, prune="a\nb\n")
    assert lines(first, second) == [
        "prune_record: absent -> 2 lines",
        "k.kv_cache_value.scale: 1 of 1 differ, most at [0]: 0.5 -> 1.0 (+100 %)",
        "k.calibration: 1 of 2 batches -> absent",
    ]


def test_an_empty_entry_is_not_no_entry():
    empty = Records({"k": LayerRecord()}, kv_cache={"k": KVCacheRecord((1.0,), (0,))})
    without = Records({}, kv_cache=empty.kv_cache)
    assert lines(empty, without) == ["k.value: empty -> absent"]


@pytest.mark.parametrize(("rtol", "differs"), [(0.0, True), (0.009, True), (0.011, False)])
def test_noise_below_rtol_is_passed_over(rtol, differs):
    first, second = layer(scale_w=(1.0, 2.0)), layer(scale_w=(1.01, 2.0))
    assert bool(first.diff(second, rtol=rtol)) is differs


def test_rtol_is_for_floats_only():
    assert lines(layer(offset_d=100), layer(offset_d=101), rtol=0.5) == [
        "conv.offset_d: 100 -> 101"
    ]


def test_not_a_number_is_like_itself():
    assert not layer(scale_d=math.nan).diff(layer(scale_d=float("nan")))


def test_a_difference_can_be_worked_with():
    (difference,) = layer(scale_w=(1.0, 2.0)).diff(layer(scale_w=(1.0, 3.0)))
    assert (difference.layer, difference.field) == ("conv", "scale_w")
    assert (difference.first, difference.second) == ((1.0, 2.0), (1.0, 3.0))
    assert (difference.differing, difference.index, difference.largest) == (1, 1, 0.5)
