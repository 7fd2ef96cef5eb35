"""The state of IFMR where it does not keep every value: integers per bucket, and extreme values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401

_ops = torch.ops.amct_pytorch

_LEAST_BITS = 4
_MOST_EXPONENT = 254  # of a finite float32
_MOST_BYTES = 48 * 2**20  # of the counts and sums of all channels
_MOST_EXTREMES = 2**20  # of each sign, of all channels


def _buckets(bits: int) -> int:
    """How many buckets a sketch has: `Layout::size` of csrc/ops/ifmr_sketch.h."""
    return 2 * ((2 << bits) + 23 * (1 << bits // 2)) + 1


@dataclass(frozen=True)
class Sketch:
    """Values of C channels on the host, as described by csrc/ops/ifmr_sketch.h.

    tops [C] are the exponents of the largest magnitudes, counts and sums [C, B] the number of
    values in each bucket and the sum of the bits that the bucket leaves out, all int64. low
    and high are the smallest negative and the largest positive values as float32 [C, K], outermost
    first and filled up with zeros. The tensors change in place.
    """

    tops: Tensor
    counts: Tensor
    sums: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def empty(channels: int, bits: int, low: int, high: int) -> Sketch:
        """A sketch of no values: of at most `bits` bits, which keeps at most so many extremes."""
        while bits > _LEAST_BITS and 16 * channels * _buckets(bits) > _MOST_BYTES:
            bits -= 1
        most = max(1, _MOST_EXTREMES // channels)

        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device="cpu")

        return Sketch(
            zeros(channels),
            zeros(channels, _buckets(bits)),
            zeros(channels, _buckets(bits)),
            zeros(channels, min(low, most), dtype=torch.float32),
            zeros(channels, min(high, most), dtype=torch.float32),
        )

    @property
    def is_valid(self) -> bool:
        """Whether no entry is one that values cannot leave: the ops take `tops` for addresses."""
        values = self.counts.sum(1)
        return bool(
            ((self.tops >= 0) & (self.tops <= _MOST_EXPONENT)).all()
            and (self.counts >= 0).all()
            and (self.sums >= 0).all()
            and (self.sums[self.counts == 0] == 0).all()
            and (values > 0).all()
            and (values == values[0]).all()
            and _is_tail(self.high)
            and _is_tail(-self.low)
        )

    def update(self, x: Tensor, axis: int | None) -> None:
        """Adds the values of x; a RuntimeError for NaN or infinity leaves the sketch as it was."""
        _ops.ifmr_update(x, *self.state().values(), axis)

    def add_counts(self, counts: Tensor, dtype: torch.dtype) -> None:
        """Adds values of a 16-bit type, given how often each occurs."""
        _ops.ifmr_add_counts(counts, dtype == torch.bfloat16, *self.state().values())

    def merge(self, other: Sketch) -> None:
        """Adds the values of `other`, a sketch of the same shape."""
        _ops.ifmr_merge(*self.state().values(), *other.state().values())

    def search(self, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, bool]:
        """(scale [C], offset [C], whether every choice is certified) for the options of IFMR."""
        scale, offset, certified = _ops.ifmr_search(*self.state().values(), *options.values())
        return scale, offset, bool(certified.all())

    def copy(self) -> Sketch:
        """A sketch with tensors of its own."""
        return Sketch(**{name: tensor.clone() for name, tensor in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _is_tail(x: Tensor) -> bool:
    """Whether magnitudes are finite and none is larger than the one before."""
    return bool(((x >= 0) & (x < torch.inf)).all() and (x.diff() <= 0).all())
