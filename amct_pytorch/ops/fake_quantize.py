"""Uniform quantization with given factors: `quantize`, `dequantize`, `fake_quantize`.

The formula is the AscendQuant operator's: q = clamp(rint(x * fl(1/scale)) + offset, qmin, qmax)
with qmin = -2^(b-1), qmax = 2^(b-1) - 1 and b = num_bits. Float32 results of `fake_quantize` are
those of `torch.fake_quantize_per_tensor_affine`, bit for bit.

Inside a compiled (float32) or exported graph the three become plain torch operations with the same
bits, so that the compiler fuses them with their neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._autograd import differentiable, traced
from ._checks import CODES, check_dtype, check_factors
from ._traced import broadcast, code_range, decomposes

_ops = torch.ops.amct_pytorch


def quantize(
    x: Tensor, scale: Tensor, offset: Tensor, num_bits: int = 8, axis: int | None = None
) -> Tensor:
    """Codes clamp(rint(x * fl(1/scale)) + offset, qmin, qmax), as int8 (num_bits <= 8) or int16.

    `x` is float32, float16 or bfloat16 of any shape and strides; `scale` (float32) and `offset`
    (int32) hold one element, or one per index of dimension `axis`. Not differentiable.
    Infinities clamp; NaN, which no integer can hold, becomes code 0.
    Raises TypeError for another dtype, ValueError for num_bits outside [2, 16], IndexError for an
    axis that `x` does not have, RuntimeError for factors of another size or device.

    >>> import torch
    >>> x = torch.tensor([-1.0, 0.02, 0.5])
    >>> quantize(x, torch.tensor(0.01), torch.tensor(10, dtype=torch.int32))
    tensor([-90,  12,  60], dtype=torch.int8)
    """
    check_dtype("x", x)
    check_factors(scale, offset)
    if decomposes(x):
        _, inverse, offset = _traced_factors(x, scale, offset, axis)
        codes = _traced_codes(x, inverse, offset).clamp(*code_range(num_bits))
        return codes.nan_to_num(0.0).to(torch.int8 if num_bits <= 8 else torch.int16)
    return _ops.quantize(x, scale, offset, num_bits, axis)


def dequantize(q: Tensor, scale: Tensor, offset: Tensor, axis: int | None = None) -> Tensor:
    """The float32 values (q - offset) * scale of int8 or int16 codes.

    Factors as for `quantize`. Not differentiable. Raises TypeError for another dtype.

    >>> import torch
    >>> q = torch.tensor([-90, 12, 60], dtype=torch.int8)
    >>> dequantize(q, torch.tensor(0.5), torch.tensor(10, dtype=torch.int32))
    tensor([-50.,   1.,  25.])
    """
    check_dtype("q", q, CODES)
    check_factors(scale, offset)
    scale = scale.detach()
    if torch.compiler.is_compiling():
        scale, _, offset = _traced_factors(q, scale, offset, axis)
        return (q.float() - offset) * scale
    return _ops.dequantize(q, scale, offset, axis)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    num_bits: int = 8,
    axis: int | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """dequantize(quantize(x)) in the dtype of `x`, with a straight-through gradient.

    The gradient of `x` is that of the result where the code before clamping lies in [qmin, qmax],
    else 0; the factors receive none. Arithmetic is float32. NaN stays NaN, infinities clamp.
    Arguments and errors as for `quantize`.

    `out`, of the shape, dtype and device of `x` or `x` itself, takes the result and is returned;
    gradients are then refused (RuntimeError). Memory that is used again is worth it for tensors of
    tens of megabytes, where fresh pages cost more than the arithmetic.

    >>> import torch
    >>> x = torch.tensor([-9.0, 0.02, 0.26])
    >>> fake_quantize(x, torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), num_bits=4)
    tensor([-2.0000,  0.0000,  0.2500])
    """
    check_dtype("x", x)
    check_factors(scale, offset)
    if out is not None:
        check_dtype("out", out, (x.dtype,))
        if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
            raise RuntimeError(
                "fake_quantize: out takes no part in gradients, but x or out requires them: "
                "leave out=, or call within torch.no_grad()"
            )
        _ops.fake_quantize.out(x, scale, offset, num_bits, axis, out=out)
        if not (traced() or out.is_inference()):
            # So that a backward which has saved it is an error. A kernel here cannot say it.
            torch.autograd.graph.increment_version(out)
        return out
    if decomposes(x):
        scale, inverse, offset = _traced_factors(x, scale, offset, axis)
        return _TracedFakeQuantize.apply(x, scale, inverse, offset, num_bits)  # type: ignore[no-untyped-call]
    return _fake_quantize(x, scale, offset, num_bits, axis)


# ---- fake kernels and autograd ----


@torch.library.register_fake("amct_pytorch::quantize")
def _(x: Tensor, scale: Tensor, offset: Tensor, num_bits: int, axis: int | None) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8 if num_bits <= 8 else torch.int16)


@torch.library.register_fake("amct_pytorch::dequantize")
def _(q: Tensor, scale: Tensor, offset: Tensor, axis: int | None) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.register_fake("amct_pytorch::fake_quantize")
def _(x: Tensor, scale: Tensor, offset: Tensor, num_bits: int, axis: int | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("amct_pytorch::fake_quantize.out")
def _(
    x: Tensor, scale: Tensor, offset: Tensor, num_bits: int, axis: int | None, *, out: Tensor
) -> None:
    return None


@torch.library.register_fake("amct_pytorch::fake_quantize_backward")
def _(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor, num_bits: int, axis: int | None
) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_bits, ctx.axis = inputs
    ctx.save_for_backward(*tensors[-3:])  # x, scale, offset; the backward has grad before them


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _fake_quantize_backward(grad, *ctx.saved_tensors, ctx.num_bits, ctx.axis)
    return grad_x, None, None, None, None


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear in its gradient, by the mask that it has itself."""
    return *_backward(ctx, grad)[:1], None, None, None, None, None


_fake_quantize = differentiable("fake_quantize", _backward, _setup_context)
_fake_quantize_backward = differentiable("fake_quantize_backward", _double_backward, _setup_context)


# ---- the same formulas as torch operations, for graphs ----


def _traced_factors(
    x: Tensor, scale: Tensor, offset: Tensor, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """scale, fl(1/scale) and offset in float32, shaped to broadcast against `x`."""
    scale = broadcast("scale", scale, x, axis)
    offset = broadcast("offset", offset, x, axis)
    # Through float64, whose division a compiler for GPUs rounds correctly; float32's it may not.
    return scale, scale.double().reciprocal().float(), offset.float()


def _traced_codes(x: Tensor, inverse: Tensor, offset: Tensor) -> Tensor:
    """The codes before clamping, as float32."""
    return torch.round(x.float() * inverse) + offset


class _TracedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, inverse: Tensor, offset: Tensor, num_bits: int
    ) -> Tensor:
        ctx.save_for_backward(x, inverse, offset)
        ctx.num_bits = num_bits
        codes = _traced_codes(x, inverse, offset).clamp(*code_range(num_bits))
        return ((codes - offset) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes = _traced_codes(*ctx.saved_tensors)
        qmin, qmax = code_range(ctx.num_bits)
        inside = (codes >= qmin) & (codes <= qmax)
        return torch.where(inside, grad, 0), None, None, None, None
