"""The state of IFMR where it does not keep every value: integers per bucket, and extreme values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401

_ops = torch.ops.amct_pytorch


@dataclass(frozen=True)
class Sketch:
    """Values by the top 22 bits of their float32, on the host; csrc/ops/ifmr_sketch.h has more.

    pages [P] are the signs and exponents that occur, counts and sums [P, 8192] the number of values
    in each bucket of a page and the sum of their low bits, all int64. low and high are the smallest
    negative and the largest positive values as float32, outermost first, up to a fixed number.
    """

    pages: Tensor
    counts: Tensor
    sums: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(x: Tensor, keep_low: int, keep_high: int) -> Sketch:
        """The sketch of the values of x, which must be finite."""
        return Sketch(*_ops.ifmr_collect(x, keep_low, keep_high))

    def merged(self, other: Sketch, keep_low: int, keep_high: int) -> Sketch:
        """The sketch of the values of both; of each, the same numbers must have been kept."""
        pages = torch.unique(torch.cat([self.pages, other.pages]))
        counts = self.counts.new_zeros(len(pages), self.counts.shape[1])
        sums = torch.zeros_like(counts)
        for part in (self, other):
            rows = torch.searchsorted(pages, part.pages)
            counts[rows] += part.counts
            sums[rows] += part.sums
        low = torch.cat([self.low, other.low]).sort().values[:keep_low].clone()
        high = torch.cat([self.high, other.high]).sort(descending=True).values[:keep_high].clone()
        return Sketch(pages, counts, sums, low, high)

    def search(self, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, bool]:
        """(scale, offset, whether the choice is certified) for the options of IFMR."""
        scale, offset, certified = _ops.ifmr_search(*self.state().values(), *options.values())
        return scale, offset, certified

    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
