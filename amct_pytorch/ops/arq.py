"""Adaptive range quantization: the factors of a weight from its smallest and largest element."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype

_ops = torch.ops.amct_pytorch


def arq(
    weight: Tensor, num_bits: int = 8, axis: int | None = None, asymmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Factors (scale float32, offset int32) that cover the range of `weight`.

    symmetric:  scale = |min| / 2^(b-1) if |min| > |max| else |max| / (2^(b-1) - 1), offset = 0;
    asymmetric: scale = (max - min) / (2^b - 1), offset = rint(-2^(b-1) - min / scale),
    with b = num_bits and zero counted as an element. A scale below the float32 epsilon, that of
    an empty or all-zero range too, becomes 1 (offset 0, asymmetric -2^(b-1)).

    `weight` is float32, float16 or bfloat16 of any shape and strides. The factors have shape []
    without `axis`, else [C], one per index of that dimension. Not differentiable. On CUDA the
    call waits for the device.
    Raises TypeError for another dtype, ValueError for num_bits outside [2, 16], IndexError for an
    axis that `weight` does not have, RuntimeError for NaN, infinity or, asymmetric, a range that
    float32 cannot hold.

    >>> import torch
    >>> arq(torch.tensor([[0.5, -1.0], [1.0, -0.5]]), axis=0)
    (tensor([0.0078, 0.0079]), tensor([0, 0], dtype=torch.int32))
    >>> arq(torch.tensor([0.5, -1.0]), asymmetric=True)
    (tensor(0.0059), tensor(42, dtype=torch.int32))
    """
    check_dtype("weight", weight)
    return _ops.arq(weight.detach(), num_bits, axis, asymmetric)


@torch.library.register_fake("amct_pytorch::arq")
def _(weight: Tensor, num_bits: int, axis: int | None, asymmetric: bool) -> tuple[Tensor, Tensor]:
    shape = [] if axis is None else [weight.size(axis)]
    return weight.new_empty(shape, dtype=torch.float32), weight.new_empty(shape, dtype=torch.int32)
