"""The shift N by which hardware with 16-bit results stores the accumulators of a layer.

An accumulator s32 = clip(rint(out / deq_scale), int32) is kept as s16 = clip(floor(s32 / 2^N),
int16), so that s16 * 2^N stands for it. N, one of 1..16, is the one of least squared error over
the outputs of a layer, the larger of equals; one per channel where the weights have a scale each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype

_ops = torch.ops.amct_pytorch
_SHIFTS = 16


def search_shift(out: Tensor, deq_scale: Tensor, axis: int | None = None) -> Tensor:
    """The shifts of least error, int32 of shape [1] or [C]: `shift_of_errors(shift_errors(...))`.

    >>> import torch
    >>> search_shift(torch.tensor([1.0e6, 32767.0]), torch.tensor(1.0))
    tensor([5], dtype=torch.int32)
    """
    return shift_of_errors(shift_errors(out, deq_scale, axis))


def shift_errors(out: Tensor, deq_scale: Tensor, axis: int | None = None) -> Tensor:
    """The sums of (s32 - s16 * 2^N)^2 for N = 1..16, float64 of shape [1, 16] or [C, 16].

    `out` is a layer's output, float32, float16 or bfloat16 of any shape and strides; `deq_scale`,
    the product of the scales of activation and weight, is float32 with one element, or with one
    per index of dimension `axis`. The arithmetic is float64 and those of several batches can be
    added up. NaN makes the errors of its channel NaN. Not differentiable.
    Raises TypeError for another dtype, IndexError for an axis that `out` does not have,
    RuntimeError for a scale of another size or device.

    >>> import torch
    >>> shift_errors(torch.tensor([7.0]), torch.tensor(1.0))[0, :4]
    tensor([ 1.,  9., 49., 49.], dtype=torch.float64)
    """
    check_dtype("out", out)
    check_dtype("deq_scale", deq_scale, (torch.float32,))
    return _ops.shift_errors(out.detach(), deq_scale.detach(), axis)


def shift_of_errors(errors: Tensor) -> Tensor:
    """The N of the least error in every row of `shift_errors`, int32; the larger of equals.

    >>> import torch
    >>> errors = torch.zeros(2, 16, dtype=torch.float64)
    >>> errors[1, 3:] = 1.0
    >>> shift_of_errors(errors)
    tensor([16,  3], dtype=torch.int32)
    """
    check_dtype("errors", errors, (torch.float64,))
    if errors.dim() != 2 or errors.size(1) != _SHIFTS:
        raise RuntimeError(f"errors must have shape [C, {_SHIFTS}], got {list(errors.shape)}")
    # argmin takes the first of equals, and of NaN.
    return (_SHIFTS - errors.flip(1).argmin(1)).to(torch.int32)


@torch.library.register_fake("amct_pytorch::shift_errors")
def _(out: Tensor, deq_scale: Tensor, axis: int | None) -> Tensor:
    channels = 1 if axis is None else out.size(axis)
    return out.new_empty([channels, _SHIFTS], dtype=torch.float64)
