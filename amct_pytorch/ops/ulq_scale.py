"""ULQ of weights: quantization by a scale that is learnt.

The gradient of the scale, with its factor 1 / sqrt(n qmax), is that of Esser et al., "Learned Step
Size Quantization" (ICLR 2020), equations 3 and section 2.2; the gradient of the weight is not
masked, as in the Ascend toolkit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._autograd import differentiable, differentiable_once
from ._checks import check_dtype
from ._traced import SCALE_FLOOR, broadcast, divide_quantize, fuses


def ulq_scale(
    weight: Tensor,
    scale: Tensor,
    num_bits: int = 8,
    axis: int | None = None,
    reciprocal: bool = False,
    *,
    groups: int = 1,
) -> Tensor:
    """clip(rint(weight / s), qmin, qmax) * s with s = scale, or s = 1 / scale if `reciprocal`.

    qmin = -2^(b-1), qmax = 2^(b-1) - 1, b = num_bits. An s below the float32 epsilon becomes it,
    so that a step of the optimizer cannot turn the grid around; a NaN stays. The result has the
    dtype of `weight`; arithmetic is float32, sums are float64.

    The gradient of `weight` is that of the result, g, everywhere. That of `scale`, for the n
    elements that share it, is the sum of g * d / sqrt(n * qmax), with d = qmax where
    weight > s * qmax, qmin where weight < s * qmin, else rint(weight / s) - weight / s; for a
    reciprocal d is multiplied by -s^2. Differentiable once.

    `weight` is float32, float16 or bfloat16 of any shape and strides; `scale` is float32 with one
    element, or with one per index of dimension `axis`, in `groups` as for `arq_fake_quantize`.
    Raises TypeError for another dtype, IndexError for an axis that `weight` does not have,
    ValueError for num_bits outside [2, 16] and for groups that do not divide dimension 0 or come
    without axis=1, RuntimeError for a scale of another size or device.

    >>> import torch
    >>> weight = torch.tensor([0.3, 0.7, -3.0, 0.0])
    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> y = ulq_scale(weight, scale, num_bits=2)
    >>> y.tolist()
    [0.5, 0.5, -1.0, 0.0]
    >>> y.sum().backward()
    >>> scale.grad  # (0.4 + 1 - 2 + 0) / sqrt(4)
    tensor(-0.3000)
    """
    check_dtype("weight", weight)
    check_dtype("scale", scale, (torch.float32,))
    run: Any = _TracedUlqScale.apply if fuses(weight) and groups == 1 else _ulq_scale
    return run(weight, scale, num_bits, axis, reciprocal, groups)


# ---- fake kernels and autograd ----


@torch.library.register_fake("amct_pytorch::ulq_scale")
def _(
    weight: Tensor, scale: Tensor, num_bits: int, axis: int | None, reciprocal: bool, groups: int
) -> Tensor:
    return torch.empty_like(weight if groups == 1 else weight.contiguous())


@torch.library.register_fake("amct_pytorch::ulq_scale_backward")
def _(
    grad: Tensor,
    weight: Tensor,
    scale: Tensor,
    num_bits: int,
    axis: int | None,
    reciprocal: bool,
    groups: int,
) -> Tensor:
    return torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, scale, *ctx.options = inputs
    ctx.save_for_backward(weight, scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_scale = None
    if ctx.needs_input_grad[1]:
        grad_scale = _ulq_scale_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad, grad_scale, None, None, None, None


_ulq_scale = differentiable("ulq_scale", _backward, _setup_context)
_ulq_scale_backward = differentiable_once("ulq_scale_backward", of="ulq_scale")


class _TracedUlqScale(torch.autograd.Function):
    """`ulq_scale` in a compiled graph; the sums of its gradient remain a kernel.

    Faster than the kernel in every size measured, from 0.6 to 0.95 of its time.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        weight, scale, num_bits, axis, reciprocal, _ = inputs
        scale = scale.double().reciprocal().float() if reciprocal else scale
        scale = torch.where(scale < SCALE_FLOOR, SCALE_FLOOR, scale)  # a NaN stays
        output = divide_quantize(weight, broadcast("scale", scale, weight, axis), 0.0, num_bits)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)
