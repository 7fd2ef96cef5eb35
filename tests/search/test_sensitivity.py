"""Sensitivities: their formulas, their direction, what users may bring."""

import math

import numpy as np
import pytest
import torch

from amct_pytorch.search.measure import streams
from amct_pytorch.search.sensitivity import (
    CosineSimilaritySensitivity,
    MseSensitivity,
    SensitivityBase,
    SqnrSensitivity,
    is_higher_better,
)


def array(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("data", "other", "score"),
    [
        ((0, 0), (1, 2), 1.0),
        ((1, 2), (0, 0), 0.0),
        ((1, 2), (-1, -2), 0.0),
        ((1, 0), (0, 3), 0.5),
        ((1, 2), (10, 20), 1.0),
    ],
    ids=["zero-data", "zero-other", "opposite", "orthogonal", "rescaled"],
)
def test_cosine(data, other, score):
    compared = CosineSimilaritySensitivity().compare(array(*data), array(*other))
    assert compared == pytest.approx(score, abs=1e-15)


def test_cosine_of_nan_is_nan():
    assert math.isnan(CosineSimilaritySensitivity().compare(array(1, math.nan), array(1, 2)))


@pytest.mark.parametrize("gap", [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4])
def test_cosine_tells_small_gaps_apart(gap):
    """1 - cos as float64 has it, where a float32 dot product sees noise."""
    angle = math.acos(1 - gap)
    a = torch.tensor([1.0, 0.0]).repeat(1000).numpy()
    b = torch.tensor([math.cos(angle), math.sin(angle)]).repeat(1000).numpy()
    exact = np.dot(a.astype(np.float64), b) / np.sqrt(
        np.dot(a.astype(np.float64), a) * np.dot(b.astype(np.float64), b)
    )
    lost = 2 * (1 - CosineSimilaritySensitivity().compare(a, b))
    assert lost == pytest.approx(1 - exact, rel=1e-2, abs=1e-9)


def test_mse_is_the_mean_square():
    assert MseSensitivity().compare(array(1, 2, 3), array(1, 2, 6)) == 3.0


def test_mse_can_normalize_both_sides():
    sensitivity = MseSensitivity(do_normalization=True)
    assert sensitivity.compare(array(0, 1, 2), array(10, 20, 30)) == pytest.approx(0, abs=1e-6)


def test_sqnr_in_db():
    assert SqnrSensitivity().compare(array(10, 0), array(9, 0)) == 20.0


class Largest(SensitivityBase):
    def compare(self, data, other):
        return abs(data - other).max()


class Correlation(SensitivityBase):
    def compare(self, data, other):
        return np.corrcoef(data, other)[0, 1]


class Scripted(SensitivityBase):
    def compare(self, data, other):
        raise KeyError("knows its own tensors only")


class Reversed(Largest):
    higher_is_better = True


@pytest.mark.parametrize(
    ("sensitivity", "direction"),
    [
        (CosineSimilaritySensitivity(), True),
        (MseSensitivity(), False),
        (SqnrSensitivity(), True),
        (Largest(), False),
        (Correlation(), True),
        (Scripted(), True),
        (Reversed(), True),
    ],
    ids=lambda x: type(x).__name__,
)
def test_direction_is_declared_or_found_out(sensitivity, direction):
    assert is_higher_better(sensitivity) is direction


class LoudCosine(CosineSimilaritySensitivity):
    def compare(self, data, other):
        return super().compare(data, other)


@pytest.mark.parametrize(
    ("sensitivity", "answer"),
    [
        (CosineSimilaritySensitivity(), True),
        (MseSensitivity(), True),
        (MseSensitivity(do_normalization=True), False),
        (LoudCosine(), False),
        (Largest(), False),
    ],
)
def test_outputs_leave_their_device_only_for_a_compare_of_its_own(sensitivity, answer):
    assert streams(sensitivity) is answer


def test_normalize_data():
    assert SensitivityBase.normalize_data(array(1, 2, 3)).tolist() == pytest.approx([0, 0.5, 1])
