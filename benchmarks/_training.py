"""The rows of `ulq`, `ulq_scale` and `arq` in the table of ops.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _case import Case, Row, Run, Target, hard_values, require_close, require_same
from _peers import QMAX, QMIN, eager_lsq, torch_learnable
from torch import Tensor

from amct_pytorch.ops import arq, arq_fake_quantize, ulq, ulq_scale
from amct_pytorch.ops.ulq import ulq_factors

FLT_EPS = torch.finfo(torch.float32).eps

# ---- learned ranges and scales in torch operations ----


class EagerULQ(torch.autograd.Function):
    """The formulas of `ops.ulq`, one torch operation after the other, as toolkits have them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: Tensor, low: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            raise RuntimeError("x must be finite")
        scale = (high - low) / (QMAX - QMIN)
        offset = torch.round(QMIN - low / scale)
        ctx.save_for_backward(x, high, low, scale, offset)
        codes = torch.clamp(torch.round(x / scale + offset), QMIN, QMAX)
        return (codes - offset) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, high, low, scale, offset = ctx.saved_tensors
        above = torch.where(x > scale * (QMAX - offset), 1, 0)
        below = torch.where(x < scale * (QMIN - offset), 1, 0)
        inside = 1 - above - below
        clipped = x * inside + high * above + low * below
        error = (torch.round(clipped / scale) - clipped / scale) / (QMAX - QMIN)
        grad_high = (grad * (error + above)).sum()
        grad_low = (grad * (below - error)).sum()
        return grad * inside, grad_high, grad_low


class EagerScale(torch.autograd.Function):
    """The formulas of `ops.ulq_scale` in the same way; one scale per row."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        if not torch.isfinite(weight).all():
            raise RuntimeError("weight must be finite")
        ctx.save_for_backward(weight, scale)
        return torch.clamp(torch.round(weight / scale), QMIN, QMAX) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        weight, scale = ctx.saved_tensors
        above = torch.where(weight > scale * QMAX, 1, 0)
        below = torch.where(weight < scale * QMIN, 1, 0)
        inside = 1 - above - below
        error = torch.round(weight / scale) - weight / scale
        slope = above * QMAX + below * QMIN + inside * error
        count = weight.numel() / scale.numel()
        return grad, (grad * slope).sum(1, keepdim=True) / math.sqrt(count * QMAX)


# ---- ulq ----

ULQ_BOTH = (Target("eager", 15),)
ULQ_BACKWARD = (Target("limit", 1 / 1.2),)
SUMMED = 1e-6  # of the sum of all magnitudes: how far a float64 sum in another order may be


def ulq_rows(run: Run) -> Iterator[Row]:
    shape = run.shape(32, 64, 112, 112)
    x = (hard_values(math.prod(shape)) * (4 / 255)).view(shape)
    grad, grad_x, y = torch.randn(shape), torch.empty(shape), torch.empty(shape)
    clips = torch.tensor(2.5), torch.tensor(-1.5)
    learnt = [t.clone().requires_grad_() for t in (x, *clips)]
    scale = torch.tensor([4 / 255], requires_grad=True)
    backward = torch.ops.amct_pytorch.ulq_backward

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ulq(*learnt)[0], learnt, grad)

    def eager() -> tuple[Tensor, ...]:
        return torch.autograd.grad(EagerULQ.apply(*learnt), learnt, grad)

    def aten() -> tuple[Tensor, ...]:
        return torch.autograd.grad(torch_learnable(learnt[0], scale), (learnt[0], scale), grad)

    def ours_backward() -> tuple[Tensor, ...]:
        return backward(grad, x, *clips, 8, False, True)

    def copy_and_multiply() -> None:
        y.copy_(x)
        torch.mul(grad, x, out=grad_x)

    check_ulq(x, clips, grad, ours())
    compiled = run.compiled(eager_lsq, learnt[0], scale)
    of = "x".join(map(str, shape))
    both = {
        "ours": ours,
        "peer": aten,
        "compiled": compiled
        and (lambda: torch.autograd.grad(compiled(), (learnt[0], scale), grad)),
        "eager": eager,
        "limit": copy_and_multiply,
    }
    name = "ulq, forward and backward"
    yield run.row(Case(name, of, x.numel(), 20, both, "ATen learnable", "copy_, mul", ULQ_BOTH))
    alone = {"ours": ours_backward, "limit": lambda: torch.mul(grad, x, out=grad_x)}
    yield run.row(Case("ulq, backward", of, x.numel(), 12, alone, "", "mul", ULQ_BACKWARD))


def check_ulq(x: Tensor, clips: tuple[Tensor, ...], grad: Tensor, ours: tuple[Tensor, ...]) -> None:
    """Values and gradient of x bit for bit; those of the clips against sums in float64."""
    scale = (clips[0] - clips[1]) / (QMAX - QMIN)
    offset = torch.round(QMIN - clips[1] / scale)
    codes = torch.clamp(torch.round(x / scale + offset), QMIN, QMAX)
    require_same("ulq", ulq(x, *clips)[0], (codes - offset) * scale)
    require_same("scale of ulq", ulq_factors(*clips)[0], scale)
    above, below = x > scale * (QMAX - offset), x < scale * (QMIN - offset)
    require_same("gradient of ulq", ours[0], torch.where(above | below, 0, grad))
    clipped = torch.where(above, clips[0], torch.where(below, clips[1], x))
    error = (torch.round(clipped / scale) - clipped / scale).double() / (QMAX - QMIN)
    for name, got, terms in (
        ("clip_max", ours[1], grad * (error + above)),
        ("clip_min", ours[2], grad * (below.double() - error)),
    ):
        require_close(f"gradient of {name}", got, terms.sum(), SUMMED * terms.abs().sum())


# ---- ulq_scale and arq ----

WEIGHTS = [(4096, 11008), (512, 512, 3, 3)]
AGAINST_EAGER = (Target("eager", 8),)
TWO_PASSES = "The range takes a pass of its own over a weight no cache holds: 12 bytes, not 8."


def weight_of(run: Run, shape: tuple[int, ...]) -> Tensor:
    shape = run.shape(*shape)
    return (hard_values(math.prod(shape)).clamp(-200, 200) * 1e-3).view(shape)


def scale_rows(shape: tuple[int, ...]) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        weight = weight_of(run, shape)
        y, matrix = torch.empty_like(weight), weight.flatten(1)
        grad = torch.randn(weight.shape)
        grad_matrix = grad.flatten(1)
        scale = (torch.rand(len(weight)) * 5e-4 + 1e-3).requires_grad_()
        column = scale.detach().unsqueeze(1).requires_grad_()
        weight.requires_grad_(), matrix.requires_grad_()

        def ours() -> tuple[Tensor, ...]:
            return torch.autograd.grad(ulq_scale(weight, scale, 8, 0), (weight, scale), grad)

        def eager() -> tuple[Tensor, ...]:
            result = EagerScale.apply(matrix, column)
            return torch.autograd.grad(result, (matrix, column), grad_matrix)

        def aten() -> tuple[Tensor, ...]:
            return torch.autograd.grad(torch_learnable(weight, scale), (weight, scale), grad)

        def copy_and_sums() -> None:
            y.copy_(weight.detach())
            weight.detach().sum(), grad.sum()

        check_scale(matrix.detach(), column.detach(), grad_matrix, ours())
        compiled = run.compiled(eager_lsq, weight, scale)
        candidates = {
            "ours": ours,
            "peer": aten,
            "compiled": compiled
            and (lambda: torch.autograd.grad(compiled(), (weight, scale), grad)),
            "eager": eager,
            "limit": copy_and_sums,
        }
        of = "x".join(map(str, weight.shape)) + " axis 0"
        name, limit = "ulq_scale, forward and backward", "copy_, 2 sums"
        yield run.row(
            Case(name, of, y.numel(), 16, candidates, "ATen learnable", limit, AGAINST_EAGER)
        )

    return rows


def check_scale(weight: Tensor, scale: Tensor, grad: Tensor, ours: tuple[Tensor, ...]) -> None:
    """Values bit for bit, the gradients of the scales against sums in float64."""
    codes = torch.clamp(torch.round(weight / scale), QMIN, QMAX)
    quantized = ulq_scale(weight, scale.squeeze(1), 8, 0)
    require_same("ulq_scale", quantized, codes * scale)
    slope = (torch.round(weight / scale) - weight / scale).double()
    slope = torch.where(weight > scale * QMAX, QMAX, slope)
    slope = torch.where(weight < scale * QMIN, QMIN, slope)
    terms = grad * slope / math.sqrt(weight.shape[1] * QMAX)
    tolerance = SUMMED * terms.abs().sum(1)
    require_close("gradient of the scale of ulq_scale", ours[1], terms.sum(1), tolerance)


def eager_scale(weight: Tensor, num_bits: int, per_row: bool) -> Tensor:
    """The symmetric scale of arq, of shape [] or [rows, 1]."""
    qmin, qmax = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    rows = weight.flatten(1)
    low = rows.amin(1, keepdim=True) if per_row else rows.min()
    high = rows.amax(1, keepdim=True) if per_row else rows.max()
    scale = torch.where(low.abs() > high.abs(), low.abs() / -qmin, high.abs() / qmax)
    return torch.where(scale < FLT_EPS, 1.0, scale)


def eager_arq(weight: Tensor, num_bits: int, per_row: bool) -> Tensor:
    scale = eager_scale(weight, num_bits, per_row)
    codes = torch.round(weight.flatten(1) / scale)
    codes = codes.clamp(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
    return (codes * scale).view_as(weight)


def checked_eager_arq(weight: Tensor, num_bits: int, per_row: bool) -> Tensor:
    """With the look for NaN and infinity that toolkits begin with."""
    if not torch.isfinite(weight).all():
        raise RuntimeError("weight must be finite")
    return eager_arq(weight, num_bits, per_row)


def aten_arq(weight: Tensor, num_bits: int, per_row: bool) -> Tensor:
    """The least and the largest value, then ATen's fake quantization."""
    low, high = torch.aminmax(weight.flatten(1), dim=1) if per_row else torch.aminmax(weight)
    qmin, qmax = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    scale = torch.maximum(low / qmin, high / qmax).clamp(min=FLT_EPS)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    if per_row:
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, qmin, qmax)
    return torch.fake_quantize_per_tensor_affine(weight, scale, zero, qmin, qmax)


def arq_rows(shape: tuple[int, ...]) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        weight = weight_of(run, shape)
        y, of = torch.empty_like(weight), "x".join(map(str, weight.shape))
        for num_bits, per_row in [(8, False), (8, True), (4, False), (4, True)]:
            yield run.row(arq_case(run, weight, y, of, num_bits, per_row))
        scales = eager_scale(weight, 8, True).squeeze(1)
        require_same("arq", arq(weight, 8, 0)[0], scales)
        candidates = {
            "ours": lambda: arq(weight, 8, 0),
            "compiled": run.compiled(eager_scale, weight, 8, True),
            "eager": lambda: eager_scale(weight, 8, True),
            "limit": weight.sum,
        }
        yield run.row(Case("arq, the factors", f"{of} axis 0", y.numel(), 4, candidates, "", "sum"))

    return rows


def arq_case(run: Run, weight: Tensor, y: Tensor, of: str, num_bits: int, per_row: bool) -> Case:
    axis = 0 if per_row else None
    expected = eager_arq(weight, num_bits, per_row)
    require_same("arq_fake_quantize", arq_fake_quantize(weight, num_bits, axis), expected)
    candidates = {
        "ours": lambda: arq_fake_quantize(weight, num_bits, axis),
        "peer": lambda: aten_arq(weight, num_bits, per_row),
        "compiled": run.compiled(eager_arq, weight, num_bits, per_row),
        "eager": lambda: checked_eager_arq(weight, num_bits, per_row),
        "limit": lambda: y.copy_(weight),
    }
    of = f"{of} {'axis 0' if per_row else 'per tensor'} {num_bits} bits"
    peer = "aminmax, ATen"
    return Case(
        "arq_fake_quantize", of, y.numel(), 8, candidates, peer, "copy_", AGAINST_EAGER, TWO_PASSES
    )


GROUPS = [
    ulq_rows,
    *(scale_rows(shape) for shape in WEIGHTS),
    *(arq_rows(shape) for shape in WEIGHTS),
]
