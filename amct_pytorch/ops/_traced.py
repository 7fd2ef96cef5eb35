"""The formulas of kernels as torch operations, which a compiler fuses with their neighbours.

An activation is read and written once less, and needs no layout of its own: with the range and
scales of a transformer block learnt, its element-wise work takes half the time of kernels.
The bits are those of the kernels, for float32. Of 16-bit tensors a compiler keeps more digits
between operations that it fuses, so that another number would be rounded than in eager mode: they
keep their kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_FLOOR = torch.finfo(torch.float32).eps  # less is taken for the scale of no range


def fuses(x: Tensor) -> bool:
    """Whether a formula takes the place of a kernel of training: inside torch.compile, for float32.

    An exported program keeps the op, which says what it is.
    """
    return decomposes(x) and not torch.compiler.is_exporting()


def decomposes(x: Tensor) -> bool:
    """The same for an op that other tools are to understand: in an exported program as well."""
    if not torch.compiler.is_compiling():
        return False
    return x.dtype == torch.float32 or torch.compiler.is_exporting()


def code_range(num_bits: int) -> tuple[float, float]:
    """(qmin, qmax), or ValueError."""
    if not 2 <= num_bits <= 16:
        raise ValueError(f"num_bits must be in [2, 16], got {num_bits}")
    return -(2.0 ** (num_bits - 1)), 2.0 ** (num_bits - 1) - 1


def broadcast(name: str, factor: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A factor of `x`, or one for each index of `axis`, shaped to meet the elements of `x`."""
    shape, channels = [1] * x.dim(), 1
    if axis is not None:
        shape[axis] = channels = x.size(axis)
    if factor.dim() > 1 or factor.numel() != channels:
        raise RuntimeError(f"{name} must have {channels} elements, got {list(factor.shape)}")
    return factor.reshape(shape)


def divide_quantize(x: Tensor, scale: Tensor, offset: Tensor | float, num_bits: int) -> Tensor:
    """(clamp(rint(x / scale + offset), qmin, qmax) - offset) * scale: what training computes."""
    quotient = x / scale
    if x.is_cuda:
        # float32's division a compiler for GPUs may not round correctly; float64's it does, and
        # rounding that again gives the same number.
        quotient = (x.double() / scale.double()).float()
    return ((quotient + offset).round().clamp(*code_range(num_bits)) - offset) * scale
