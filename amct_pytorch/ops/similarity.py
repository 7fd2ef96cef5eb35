"""How close a quantized tensor is to the float one: cosine, mean square error, SQNR, largest error.

The op sums in float64 on the device of the tensors; the division and the logarithm that remain
are done here, on the host.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype

_ops = torch.ops.amct_pytorch


class Similarity(NamedTuple):
    """Measures of a tensor b against a tensor a.

    cosine:  0.5 + 0.5 (a.b) / (|a| |b|), from 0 (opposite) to 1 (same direction);
             1 where a is all zero, else 0 where b is
    mse:     mean of (a - b)^2
    sqnr_db: 10 log10(sum a^2 / sum (a - b)^2); inf for equal tensors, -inf where only a is zero
    max_abs: largest |a - b|
    """

    cosine: float
    mse: float
    sqnr_db: float
    max_abs: float


def similarity(a: Tensor, b: Tensor) -> Similarity:
    """Measures of `b` (the quantized tensor) against `a` (the float one), as Python floats.

    Both are float32, float16 or bfloat16, of one dtype, shape and device; strides may differ.
    The sums are float64 and the cosine is exact for tensors that differ by little. NaN and
    infinity give NaN. Tensors without elements count as equal.

    The floats are read from the device, so the function is for the host: it cannot be part of a
    graph of torch.compile or torch.export. Its op torch.ops.amct_pytorch.similarity_sums can.
    Raises TypeError for another dtype, RuntimeError for tensors of different shapes or devices.

    >>> import torch
    >>> similarity(torch.tensor([10.0, 0.0]), torch.tensor([9.0, 0.0]))
    Similarity(cosine=1.0, mse=0.5, sqnr_db=20.0, max_abs=1.0)
    """
    return from_sums(similarity_sums(a, b).tolist(), a.numel())


def similarity_sums(a: Tensor, b: Tensor) -> Tensor:
    """What `from_sums` needs, as a float64 tensor on the device of `a` and `b`, for later.

    sum a^2, sum b^2, sum (a - b)^2, sum (a - b)(a + b) and max |a - b|: those of several pairs
    can be added up (the last: its maximum taken).
    """
    check_dtype("a", a)
    check_dtype("b", b, (a.dtype,))
    sums: Tensor = _ops.similarity_sums(a.detach(), b.detach())
    return sums


def from_sums(sums: list[float], count: int) -> Similarity:
    """The measures of tensors of `count` elements."""
    aa, bb, error, difference, max_abs = sums
    if not math.isfinite(error):
        return Similarity(math.nan, math.nan, math.nan, math.nan)
    if aa == 0 or error == 0:
        cosine = 1.0
    elif bb == 0:
        cosine = 0.0
    else:
        # 1 - cos = (|a - b|^2 - (|a| - |b|)^2) / (2 |a| |b|), with |a| - |b| = (a-b).(a+b) /
        # (|a| + |b|): no difference of nearly equal numbers, as 1 - a.b / (|a| |b|) would be.
        norm_a, norm_b = math.sqrt(aa), math.sqrt(bb)
        distance = error - (difference / (norm_a + norm_b)) ** 2
        cosine = 1 - 0.5 * min(max(distance / (2 * norm_a * norm_b), 0.0), 2.0)
    if error == 0:
        sqnr_db = math.inf
    elif aa == 0:
        sqnr_db = -math.inf
    else:
        sqnr_db = 10 * math.log10(aa / error)
    return Similarity(cosine, error / max(count, 1), sqnr_db, max_abs)


@torch.library.register_fake("amct_pytorch::similarity_sums")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(5, dtype=torch.float64)
