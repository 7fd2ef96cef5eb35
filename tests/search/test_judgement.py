"""What metric_eval may return."""

import math

import numpy as np
import pytest
import torch

from amct_pytorch.search.judgement import judgement


@pytest.mark.parametrize(
    "value",
    [
        (True, 0.5),
        [True, 0.5],
        (np.bool_(True), np.float32(0.5)),
        (np.array(True), np.array([0.5])),
        (torch.tensor(True), torch.tensor(0.5)),
        (torch.tensor([True]), torch.tensor([[0.5]], dtype=torch.float64)),
    ],
)
def test_scalars_of_every_kind_behave_like_plain_values(value):
    judged = judgement(value, "E.metric_eval")
    assert judged == (True, 0.5)
    assert [type(v) for v in judged] == [bool, float]


def test_loss_may_be_missing_or_an_int():
    assert judgement((False, None), "") == (False, None)
    assert judgement((False, 1), "") == (False, 1.0)


def test_loss_may_be_nan():
    assert math.isnan(judgement((False, math.nan), "").loss)


@pytest.mark.parametrize(
    "value",
    [
        True,
        None,
        0.5,
        "yes",
        (True,),
        (True, 0.5, 1),
        (1, 0.5),
        ("True", 0.5),
        (0.2, True),
        (True, "small"),
        (True, [0.1, 0.2]),
        (None, 0.5),
        {"ok": True},
        np.array([1.0, 0.5]),
        (torch.tensor([True, False]), 0.5),
        (True, True),
        (True, 1j),
    ],
    ids=str,
)
def test_anything_else_is_told_with_what_came_back(value):
    with pytest.raises(TypeError) as error:
        judgement(value, "Mine.metric_eval")
    assert str(error.value).startswith("Mine.metric_eval: expected a pair")
    assert str(error.value).endswith(f"got {value!r}")
