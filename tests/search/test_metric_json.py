"""Metrics survive the journal with value and type, or are known not to."""

import collections
import json
import math

import numpy as np
import pytest
import torch

from amct_pytorch.search.metric_json import NotStorable, decode, encode


@pytest.mark.parametrize(
    "metric",
    [
        None,
        True,
        3,
        0.1 + 0.2,
        math.inf,
        "0.5",
        (0.5, [1, "a"]),
        {"top1": (0.5,), 5: None},
        np.float32(0.1),
        np.float64(0.1),
        np.int64(7),
        np.bool_(True),
        np.arange(6.0).reshape(2, 3),
        [],
        (),
        {},
        {"float": 1},
    ],
    ids=repr,
)
def test_a_metric_comes_back_equal_and_of_its_type(metric):
    again = decode(json.loads(json.dumps(encode(metric))))
    assert type(again) is type(metric)
    assert np.array_equal(again, metric) if isinstance(metric, np.ndarray) else again == metric


def test_nan_comes_back():
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(dtype):
    tensor = torch.tensor([[0.1, 2.0], [3.0, 0.0]]).to(dtype)
    again = decode(json.loads(json.dumps(encode((tensor,)))))[0]
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


def test_a_sparse_tensor_has_no_form():
    with pytest.raises(NotStorable):
        encode(torch.eye(3).to_sparse())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_comes_back_to_its_device():
    assert decode(json.loads(json.dumps(encode(torch.ones(2, device="cuda"))))).is_cuda


class Metric(float):
    pass


Pair = collections.namedtuple("Pair", "top1 top5")


@pytest.mark.parametrize(
    "metric", [object(), Metric(0.5), Pair(1, 2), {1, 2}, [object()], torch.zeros(5_000_000)]
)
def test_what_has_no_exact_form_is_refused(metric):
    with pytest.raises(NotStorable):
        encode(metric)
