"""How much a layer suffers from quantization: its float output beside its quantized output."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops.similarity import Similarity, similarity


class SensitivityBase:
    """Subclass it and implement `compare` to rank the layers by another measure.

    Example::

        class LargestError(SensitivityBase):
            higher_is_better = False

            def compare(self, data, other):
                return abs(data - other).max()
    """

    higher_is_better: bool | None = None
    """Whether a layer that suffers less gets a higher score. None: found out by comparing a
    tensor with itself and with a disturbed copy."""

    def compare(self, data: NDArray[np.float32], other: NDArray[np.float32]) -> Any:
        """The score of one batch, a number.

        `data` is the output of the float layer, `other` that of the quantized one: float32, both
        of shape [elements]. The score of a layer is the mean over its batches.
        """
        raise NotImplementedError(f"{type(self).__name__}.compare(data, other) is not implemented")

    @staticmethod
    def normalize_data(data: NDArray[Any]) -> NDArray[Any]:
        """`data` moved and stretched to 0..1: (x - min) / (max - min + eps of float32)."""
        low, high = data.min(), data.max()
        normalized: NDArray[Any] = (data - low) / (high - low + np.finfo(np.float32).eps)
        return normalized


class SimilaritySensitivity(SensitivityBase):
    """A measure that comes from float64 sums over the outputs, taken where the tensors are."""

    do_normalization = False

    @property
    def streams(self) -> bool:
        """Whether `score` says all, so that no output has to leave its device for `compare`."""
        own = type(self).compare is SimilaritySensitivity.compare
        return own and not self.do_normalization

    def compare(self, data: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        arrays = (data, other)
        if self.do_normalization:
            arrays = (self.normalize_data(data), self.normalize_data(other))
        measured = similarity(*(torch.from_numpy(np.asarray(x, np.float32)) for x in arrays))
        return self.score([measured], measured)

    def score(self, batches: Sequence[Similarity], total: Similarity) -> float:
        """The score of a layer from the similarity of its outputs, batch by batch and in all."""
        raise NotImplementedError


class CosineSimilaritySensitivity(SimilaritySensitivity):
    """0.5 + 0.5 cos(float, quantized), mean over the batches: 1 where nothing is lost.

    >>> CosineSimilaritySensitivity().compare(np.float32([1, 0]), np.float32([0, 2]))
    0.5
    """

    higher_is_better = True

    def score(self, batches: Sequence[Similarity], total: Similarity) -> float:
        return fmean(batch.cosine for batch in batches)


class MseSensitivity(SimilaritySensitivity):
    """Mean square error over all batches: 0 where nothing is lost.

    `do_normalization` stretches both sides of a batch to 0..1 first, each by its own range.

    >>> MseSensitivity().compare(np.float32([1, 0]), np.float32([0, 0]))
    0.5
    """

    higher_is_better = False

    def __init__(self, do_normalization: bool = False) -> None:
        self.do_normalization = do_normalization

    def score(self, batches: Sequence[Similarity], total: Similarity) -> float:
        return total.mse


class SqnrSensitivity(SimilaritySensitivity):
    """Signal to quantization noise in dB over all batches: infinite where nothing is lost.

    >>> SqnrSensitivity().compare(np.float32([10, 0]), np.float32([9, 0]))
    20.0
    """

    higher_is_better = True

    def score(self, batches: Sequence[Similarity], total: Similarity) -> float:
        return total.sqnr_db


SENSITIVITIES: dict[str, type[SensitivityBase]] = {
    "CosineSimilarity": CosineSimilaritySensitivity,
    "Mse": MseSensitivity,
    "Sqnr": SqnrSensitivity,
}


def is_higher_better(sensitivity: SensitivityBase) -> bool:
    """The direction of a sensitivity: what it declares, else what its comparisons show."""
    declared = sensitivity.higher_is_better
    if declared is not None:
        return bool(declared)
    generator = np.random.default_rng(0)
    data = generator.standard_normal(1024, dtype=np.float32)
    disturbed = data + generator.standard_normal(1024, dtype=np.float32)
    try:
        same, different = (
            float(sensitivity.compare(data.copy(), other)) for other in (data.copy(), disturbed)
        )
    except Exception:  # a compare that knows only the shapes of its own model
        return True
    return not same < different
