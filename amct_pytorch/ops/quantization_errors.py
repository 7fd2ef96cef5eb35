"""What quantizing a tensor loses, and how much of that to clipping."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype, check_factors

_ops = torch.ops.amct_pytorch


def quantization_errors(x: Tensor, scale: Tensor, offset: Tensor, num_bits: int = 8) -> Tensor:
    """[sum (x - fake_quantize(x))^2, sum (x - clamp(x, lo, hi))^2] as float64 on the device of `x`.

    lo = (qmin - offset) * scale and hi = (qmax - offset) * scale are the ends of the range, so the
    second is the part of the first that a wider range would save. The sums of several tensors can
    be added. NaN and infinity in `x` give NaN or infinity.

    `x` is float32, float16 or bfloat16 of any shape and strides, read once; `scale` (float32) and
    `offset` (int32) hold one element. Not differentiable. Raises TypeError for another dtype,
    ValueError for num_bits outside [2, 16], RuntimeError for factors of another size or device.

    >>> import torch
    >>> x = torch.tensor([0.75, 9.0])
    >>> quantization_errors(x, torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), num_bits=4)
    tensor([30.3125, 30.2500], dtype=torch.float64)
    """
    check_dtype("x", x)
    check_factors(scale, offset)
    sums: Tensor = _ops.quantization_errors(x.detach(), scale.detach(), offset, num_bits)
    return sums


@torch.library.register_fake("amct_pytorch::quantization_errors")
def _(x: Tensor, scale: Tensor, offset: Tensor, num_bits: int) -> Tensor:
    return x.new_empty(2, dtype=torch.float64)
