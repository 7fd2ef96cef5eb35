"""High frequency min gap (HFMG): the range of a histogram that quantizes with the least error."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype


def hfmg(
    x: Tensor,
    num_bits: int = 8,
    *,
    asymmetric: bool = True,
    num_of_bins: int = 4096,
    axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Factors (scale float32, offset int32) from a histogram of x.

    Bins are dropped from the ends of `torch.histc(x, num_of_bins, min, max)`, those first that hold
    the fewest values, and of all ranges so found the one is kept whose division into 2^num_bits
    equal cells has the least squared error. Factors are those of the kept range, widened to contain
    zero. A scale under 2^-23 becomes 1.

    `x` is float32, float16 or bfloat16 of any shape and strides. The factors are 0-d, or have one
    element per index of dimension `axis`, each channel having a histogram of its own.
    Raises TypeError for another dtype; ValueError for an empty tensor, num_bits outside [2, 16] or
    num_of_bins other than 1024, 2048, 4096 and 8192; IndexError for an axis that `x` does not have;
    RuntimeError for NaN or infinity.

    >>> import torch
    >>> scale, offset = hfmg(torch.full((4,), 5.0))
    >>> round(scale.item() * 255, 6), offset.item()
    (5.0, -128)
    """
    check_dtype("x", x)
    return torch.ops.amct_pytorch.hfmg(x.detach(), num_bits, asymmetric, num_of_bins, axis)


@torch.library.register_fake("amct_pytorch::hfmg")
def _(
    x: Tensor, num_bits: int, asymmetric: bool, num_of_bins: int, axis: int | None
) -> tuple[Tensor, Tensor]:
    size = () if axis is None else (x.size(axis),)
    return x.new_empty(size, dtype=torch.float32), x.new_empty(size, dtype=torch.int32)


# ---- the ops of calibrators.HFMG, whose state is host memory ----


@torch.library.register_fake("amct_pytorch::hfmg_update")
def _(x: Tensor, ranges: Tensor, counts: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(ranges), torch.empty_like(counts)


@torch.library.register_fake("amct_pytorch::hfmg_merge")
def _(
    ranges: Tensor, counts: Tensor, other_ranges: Tensor, other_counts: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(ranges), torch.empty_like(counts)


@torch.library.register_fake("amct_pytorch::hfmg_search")
def _(ranges: Tensor, counts: Tensor, num_bits: int, asymmetric: bool) -> tuple[Tensor, Tensor]:
    rows = ranges.size(0)
    return ranges.new_empty(rows), ranges.new_empty(rows, dtype=torch.int32)
