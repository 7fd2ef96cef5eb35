"""Input feature map range (IFMR): the factors with the least quantization error."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype


def ifmr(
    x: Tensor,
    num_bits: int = 8,
    *,
    asymmetric: bool = True,
    max_percentile: float = 0.999999,
    min_percentile: float = 0.999999,
    search_range: tuple[float, float] = (0.7, 1.3),
    search_step: float = 0.01,
    axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Factors (scale float32, offset int32) that minimise sum((fake_quantize(x) - x)^2).

    The k-th largest and smallest values, k = N - int(percentile * N), widened to contain zero, give
    a range [lo, hi]. Candidates scale its upper end (asymmetric) or both ends of the symmetric
    range by the ratios of `torch.arange(*search_range, search_step)`; the first least loss, summed
    in double precision, wins. A scale under 2^-23 becomes 1.

    `x` is float32, float16 or bfloat16 of any shape and strides. The factors are 0-d, or have one
    element per index of dimension `axis`, each channel being searched on its own.
    Raises TypeError for another dtype; ValueError for an empty tensor, num_bits outside [2, 16], a
    percentile outside (0.5, 1], a search_range other than 0 < start < end, a search_step that is
    not positive; IndexError for an axis that `x` does not have; RuntimeError for NaN or infinity.

    >>> import torch
    >>> scale, offset = ifmr(torch.full((4,), 5.0))
    >>> round(scale.item() * 255, 6), offset.item()
    (5.0, -128)
    """
    check_dtype("x", x)
    return torch.ops.amct_pytorch.ifmr(
        x.detach(),
        num_bits,
        asymmetric,
        max_percentile,
        min_percentile,
        search_range,
        search_step,
        axis,
    )


@torch.library.register_fake("amct_pytorch::ifmr")
def _(
    x: Tensor,
    num_bits: int,
    asymmetric: bool,
    max_percentile: float,
    min_percentile: float,
    search_range: list[float],
    search_step: float,
    axis: int | None,
) -> tuple[Tensor, Tensor]:
    size = () if axis is None else (x.size(axis),)
    return x.new_empty(size, dtype=torch.float32), x.new_empty(size, dtype=torch.int32)
