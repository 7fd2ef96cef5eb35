"""Adaptive range quantization: the factors of a weight from its smallest and largest element.

`arq` is for calibration; `arq_fake_quantize` quantizes the weight too, at every step of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._autograd import differentiable
from ._checks import check_dtype
from ._traced import SCALE_FLOOR, broadcast, code_range, divide_quantize, fuses

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


def arq_fake_quantize(
    weight: Tensor, num_bits: int = 8, axis: int | None = None, *, groups: int = 1
) -> Tensor:
    """`weight` quantized to the range that it has, with a straight-through gradient.

    clip(rint(weight / s), -2^(b-1), 2^(b-1) - 1) * s with the symmetric scale s of `arq`, in the
    dtype of `weight`; b = num_bits, arithmetic is float32. The gradient of `weight` is that of the
    result, everywhere.

    `weight` is float32, float16 or bfloat16 of any shape and strides. There is one scale without
    `axis`, else one per index of that dimension. A transposed convolution's weight [in, out/g, ...]
    has its channels in dimension 1 of g blocks of dimension 0: with axis=1, groups=g the scale of
    block i and index j is the one of place i * size(1) + j.
    Nothing is read from the device: a NaN or infinity raises no error but makes its channel NaN.
    Raises TypeError for another dtype, IndexError for an axis that `weight` does not have,
    ValueError for num_bits outside [2, 16] and for groups that do not divide dimension 0 or come
    without axis=1.

    >>> import torch
    >>> arq_fake_quantize(torch.tensor([[1.0, 0.3], [-2.0, 0.6]]), num_bits=2, axis=0)
    tensor([[ 1.,  0.],
            [-2.,  1.]])
    """
    return arq_fake_quantize_scale(weight, num_bits, axis, groups=groups)[0]


def arq_fake_quantize_scale(
    weight: Tensor, num_bits: int = 8, axis: int | None = None, *, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """(quantized weight, scale): what `arq_fake_quantize` makes, and the scales that it took.

    The scale is float32 of shape [], with `axis` [C], or [groups * C]; it is not differentiable.

    >>> import torch
    >>> arq_fake_quantize_scale(torch.tensor([[1.0, 0.3], [-2.0, 0.6]]), num_bits=2, axis=0)[1]
    tensor([1., 1.])
    """
    check_dtype("weight", weight)
    traced = fuses(weight) and groups == 1 and weight.numel() > 0
    run: Any = _TracedArq.apply if traced else _arq_fake_quantize
    return run(weight, num_bits, axis, groups)


# ---- fake kernels and autograd ----


@torch.library.register_fake("amct_pytorch::arq")
def _(weight: Tensor, num_bits: int, axis: int | None, asymmetric: bool) -> tuple[Tensor, Tensor]:
    shape = [] if axis is None else [weight.size(axis)]
    return weight.new_empty(shape, dtype=torch.float32), weight.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("amct_pytorch::arq_fake_quantize")
def _(weight: Tensor, num_bits: int, axis: int | None, groups: int) -> tuple[Tensor, Tensor]:
    scale = weight.new_empty(
        [] if axis is None else [groups * weight.size(axis)], dtype=torch.float32
    )
    return torch.empty_like(weight if groups == 1 else weight.contiguous()), scale


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return grad, None, None, None


_arq_fake_quantize = differentiable("arq_fake_quantize", _backward, _setup_context)


class _TracedArq(torch.autograd.Function):
    """`arq_fake_quantize` in a compiled graph.

    A compiler finds the ranges of weights that lie in the cache more slowly than the kernel does;
    in blocks of models it makes up for that by what it fuses and by the calls that it saves.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        weight, num_bits, axis, _ = inputs
        qmin, qmax = code_range(num_bits)
        others = [d for d in range(weight.dim()) if axis is None or d != axis % weight.dim()]
        # One more to reduce: amax takes no dimension for all of them.
        rows, others = weight.unsqueeze(-1), [*others, -1]
        above, below = rows.amax(others).clamp(min=0), -rows.amin(others).clamp(max=0)
        widest = torch.where(above < below, below, above).double()
        steps = torch.where(above < below, -qmin, qmax)
        # In float64, whose division a compiler for GPUs rounds correctly; float32's it may not.
        scale = (widest / steps).float()
        scale = torch.where(scale < SCALE_FLOOR, 1.0, scale)
        output = (
            divide_quantize(weight, broadcast("scale", scale, weight, axis), 0.0, num_bits),
            scale,
        )
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)
