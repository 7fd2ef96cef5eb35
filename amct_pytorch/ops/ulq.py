"""ULQ: quantization of activations to a clip range that is learnt.

With b = num_bits, N = 2^b - 1, qmin = -2^(b-1) and qmax = 2^(b-1) - 1:

    asymmetric: s = (max - min) / N,  o = rint(qmin - min / s)
    symmetric:  s = |min| / 2^(b-1) if |min| > |max| else |max| / qmax,  o = 0
    y = (clip(rint(x / s + o), qmin, qmax) - o) * s

The gradients are those of the Ascend toolkit's learned clip ranges: straight through the rounding,
with the derivative of s by the clips. Where A = [x > s (qmax - o)] and B = [x < s (qmin - o)], v is
max where A, min where B, else x, and e = (rint(v / s) - v / s) / N:

    dx = g (1 - A - B),  dmax = sum g (e + A),  dmin = sum g (B - e)

and for the symmetric form, of whose clips only the one farther from zero has a part in s,

    dmax = sum g d / qmax  or  dmin = -sum g d / 2^(b-1)

with d = qmax where A, qmin where B, else rint(x / s) - x / s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._autograd import differentiable, differentiable_once
from ._checks import check_dtype
from ._traced import divide_quantize, fuses

_ops = torch.ops.amct_pytorch


def ulq(
    x: Tensor,
    clip_max: Tensor,
    clip_min: Tensor,
    num_bits: int = 8,
    *,
    fixed_min: bool = False,
    asymmetric: bool = True,
    previous: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, scale, offset, clip_max, clip_min): `x` quantized to the range of the clips.

    `x` is float32, float16 or bfloat16 of any shape and strides, and `y` is like it; arithmetic is
    float32, sums are float64. The clips are float32 with one element, on the device of `x`. They
    are guarded, and the range that was used comes back, all as `ulq_factors` tells. The formulas
    are those of the module. NaN stays NaN and passes its gradient on, infinities clamp.

    Differentiable once, by `x` and by both clips: the guard passes the gradient on to the clips
    that were given, whichever were used; the gradient of `clip_min` is 0 with `fixed_min`. Where
    the scale is 1 for want of a range, the gradients are those of the formulas with s = 1.
    Nothing is read from the device, and of full size nothing is kept but `x`.
    Raises TypeError for another dtype, ValueError for num_bits outside [2, 16], RuntimeError for
    clips of another size or device.

    >>> import torch
    >>> x = torch.tensor([-2.0, 0.3, 0.6, 9.0], requires_grad=True)
    >>> clip_max = torch.tensor(1.5, requires_grad=True)
    >>> y, scale, offset, *_ = ulq(x, clip_max, torch.tensor(0.0), num_bits=2)
    >>> y.tolist(), scale, offset
    ([0.0, 0.5, 0.5, 1.5], tensor(0.5000), tensor(-2, dtype=torch.int32))
    >>> y.sum().backward()
    >>> x.grad, round(clip_max.grad.item(), 4)  # (0.4 - 0.2) / 3 + 1
    (tensor([0., 1., 1., 0.]), 1.0667)
    """
    check_dtype("x", x)
    _check_clips(clip_max, clip_min, previous)
    run: Any = _TracedUlq.apply if fuses(x) else _ulq
    return run(x, clip_max, clip_min, num_bits, fixed_min, asymmetric, *(previous or _NONE))


def ulq_factors(
    clip_max: Tensor,
    clip_min: Tensor,
    num_bits: int = 8,
    *,
    fixed_min: bool = False,
    asymmetric: bool = True,
    previous: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(scale, offset, clip_max, clip_min): the factors of a clip range, and the range itself.

    The range is that of the clips if their width is finite and more than eps * max(1, |max|,
    |min|), with the float32 epsilon eps; else that of `previous`, a (max, min) pair, if its width
    is finite; else [0, 0]. It is then widened to contain zero. With `fixed_min` its lower end is
    zero throughout. A scale below eps becomes 1 (offset 0, asymmetric -2^(b-1)).

    Tensors are float32 with one element, on one device; nothing is read from it. The results have
    shape [], float32, the offset int32. Not differentiable. Errors as for `ulq`.

    >>> import torch
    >>> ulq_factors(torch.tensor(1.0), torch.tensor(-0.5))
    (tensor(0.0059), tensor(-43, dtype=torch.int32), tensor(1.), tensor(-0.5000))
    >>> last = torch.tensor(2.0), torch.tensor(-2.0)
    >>> ulq_factors(torch.tensor(torch.nan), torch.tensor(0.0), previous=last, asymmetric=False)
    (tensor(0.0157), tensor(0, dtype=torch.int32), tensor(2.), tensor(-2.))
    """
    _check_clips(clip_max, clip_min, previous)
    clips = (clip.detach() for clip in (clip_max, clip_min))
    return _ops.ulq_factors(*clips, num_bits, fixed_min, asymmetric, *(previous or _NONE))


_NONE = (None, None)


def _check_clips(
    clip_max: Tensor, clip_min: Tensor, previous: tuple[Tensor, Tensor] | None
) -> None:
    check_dtype("clip_max", clip_max, (torch.float32,))
    check_dtype("clip_min", clip_min, (torch.float32,))
    if previous is not None:
        for i, clip in enumerate(previous):
            check_dtype(f"previous[{i}]", clip, (torch.float32,))


# ---- fake kernels and autograd ----


def _fake_factors(clip: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale, maximum, minimum = (clip.new_empty([], dtype=torch.float32) for _ in range(3))
    return scale, clip.new_empty([], dtype=torch.int32), maximum, minimum


@torch.library.register_fake("amct_pytorch::ulq_factors")
def _(
    clip_max: Tensor,
    clip_min: Tensor,
    num_bits: int,
    fixed_min: bool,
    asymmetric: bool,
    previous_max: Tensor | None,
    previous_min: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_factors(clip_max)


@torch.library.register_fake("amct_pytorch::ulq")
def _(
    x: Tensor,
    clip_max: Tensor,
    clip_min: Tensor,
    num_bits: int,
    fixed_min: bool,
    asymmetric: bool,
    previous_max: Tensor | None,
    previous_min: Tensor | None,
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_fake_factors(clip_max)


@torch.library.register_fake("amct_pytorch::ulq_backward")
def _(
    grad: Tensor,
    x: Tensor,
    clip_max: Tensor,
    clip_min: Tensor,
    num_bits: int,
    fixed_min: bool,
    asymmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(clip_max), torch.empty_like(clip_min)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, clip_max, clip_min, *ctx.options = inputs[:6]
    ctx.shapes = clip_max.shape, clip_min.shape
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, *output[3:])


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    grad_x, *grad_clips = _ulq_backward(grad, *ctx.saved_tensors, *ctx.options)
    clips = (
        clip if clip.shape == shape else clip.reshape(shape)
        for clip, shape in zip(grad_clips, ctx.shapes, strict=True)
    )
    return grad_x, *clips, None, None, None, None, None


_ulq = differentiable("ulq", _backward, _setup_context)
_ulq_backward = differentiable_once("ulq_backward", of="ulq")


class _TracedUlq(torch.autograd.Function):
    """`ulq` in a compiled graph: y fused with what makes x and what takes y.

    The factors are scalars; the gradients come in one pass with sums that no compiler would add
    up in the same order. Both remain kernels.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        x, num_bits = inputs[0], inputs[3]
        scale, offset, *clips = _ops.ulq_factors(*inputs[1:])
        output = divide_quantize(x, scale, offset.float(), num_bits), scale, offset, *clips
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)
