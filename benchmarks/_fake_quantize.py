"""The rows of `fake_quantize` and `quantize` in the table of ops.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _case import Case, Row, Run, Target, hard_values, require_same
from torch import Tensor

from amct_pytorch.ops import fake_quantize, quantize

QMIN, QMAX = -128, 127
SCALE, OFFSET = 0.02, 3

# ---- the formula in torch operations ----


def codes_of(x: Tensor, inverse: Tensor, offset: Tensor) -> Tensor:
    """rint(x * fl(1/scale)) + offset, before it is clamped."""
    return torch.round(x.float() * inverse) + offset


def eager(x: Tensor, scale: Tensor, inverse: Tensor, offset: Tensor) -> Tensor:
    codes = codes_of(x, inverse, offset).clamp(QMIN, QMAX)
    return ((codes - offset) * scale).to(x.dtype)


class StraightThrough(torch.autograd.Function):
    """`eager` with the gradient of what was not clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, inverse: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(x, inverse, offset)
        return eager(x, scale, inverse, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes = codes_of(*ctx.saved_tensors)
        return torch.where((codes >= QMIN) & (codes <= QMAX), grad, 0), None, None, None


def straight_through(x: Tensor, *factors: Tensor) -> Tensor:
    return StraightThrough.apply(x, *factors)


def eager_codes(x: Tensor, inverse: Tensor, offset: Tensor) -> Tensor:
    return codes_of(x, inverse, offset).clamp(QMIN, QMAX).to(torch.int8)


# ---- per tensor ----

FORWARD = {
    torch.float32: (Target("limit", 1.0, 1.4), Target("peer", 10, 18)),
    torch.float16: (Target("limit", 0.75, 1.0), Target("peer", 10)),
    torch.bfloat16: (Target("limit", 0.75, 1.0), Target("peer", 10)),
}
HOST_TIME = "Most of it is the way of a call to the op."
INTO = (Target("limit", 1.0, 1.4),)
SMALL = (Target("peer", 3),)
BOTH_WAYS = (Target("limit", 1 / 1.15),)


class PerTensor:
    """A tensor that is hard to quantize, its factors, and the candidates."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.scale, self.offset = torch.tensor(SCALE), torch.tensor(OFFSET, dtype=torch.int32)
        self.x = (hard_values(elements) * SCALE).to(dtype)
        self.y = torch.empty_like(self.x)
        self.factors = self.scale, self.scale.reciprocal(), self.offset.float()
        self.of = f"{size_of(self.x)} {name_of(dtype)}"
        require_same(f"fake_quantize {self.of}", self.ours(), eager(self.x, *self.factors))

    def ours(self) -> Tensor:
        return fake_quantize(self.x, self.scale, self.offset)

    def aten(self) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(self.x, self.scale, self.offset, QMIN, QMAX)

    def row(
        self, run: Run, op: str, targets: tuple[Target, ...], why: str = "", fresh: bool = False
    ) -> Row:
        candidates = {
            "ours": self.ours,
            "peer": self.aten,
            "compiled": run.compiled(eager, self.x, *self.factors),
            "eager": lambda: eager(self.x, *self.factors),
            "limit": self.x.clone if fresh else lambda: self.y.copy_(self.x),
        }
        traffic = 2 * self.x.element_size()
        limit = "clone" if fresh else "copy_"
        return run.row(
            Case(op, self.of, self.x.numel(), traffic, candidates, "ATen", limit, targets, why)
        )


def fresh(run: Run) -> Iterator[Row]:
    """As users call it: the result is allocated, and its pages come from the kernel."""
    t = PerTensor(run.size(2**24), torch.float32)
    yield t.row(run, "fake_quantize, fresh pages", (), fresh=True)


def forward(dtype: torch.dtype, elements: int) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        small = elements <= 10**6
        targets, why = (SMALL, HOST_TIME) if small else (FORWARD[dtype], "")
        if elements < 2**27 or run.whole:
            yield PerTensor(run.size(elements), dtype).row(run, "fake_quantize", targets, why)

    return rows


def into(run: Run) -> Iterator[Row]:
    """Into a tensor that is there, as copy_ does it."""
    t = PerTensor(run.size(2**24), torch.float32)

    def ours() -> Tensor:
        return fake_quantize(t.x, t.scale, t.offset, out=t.y)

    t.y.fill_(torch.nan)
    require_same("fake_quantize, out", ours(), eager(t.x, *t.factors))
    candidates = {"ours": ours, "limit": lambda: t.y.copy_(t.x)}
    yield run.row(Case("fake_quantize, out=", t.of, t.x.numel(), 8, candidates, targets=INTO))


def both_ways(dtype: torch.dtype) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        t = PerTensor(run.size(2**24), dtype)
        grad, grad_x = torch.randn(t.x.numel()).to(dtype), torch.empty_like(t.x)
        t.x.requires_grad_()

        def back(function: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(*arguments), t.x, grad)

        def limit() -> None:
            t.y.copy_(t.x.detach())
            torch.mul(grad, t.x.detach(), out=grad_x)

        require_same(
            "gradient of fake_quantize", *back(t.ours), *back(straight_through, t.x, *t.factors)
        )
        compiled = run.compiled(straight_through, t.x, *t.factors)
        candidates = {
            "ours": lambda: back(t.ours),
            "peer": lambda: back(t.aten),
            "compiled": compiled and (lambda: back(compiled)),
            "eager": lambda: back(straight_through, t.x, *t.factors),
            "limit": limit,
        }
        op, traffic = "fake_quantize, forward and backward", 5 * t.x.element_size()
        yield run.row(
            Case(op, t.of, t.x.numel(), traffic, candidates, "ATen", "copy_, mul", BOTH_WAYS)
        )

    return rows


def codes(run: Run) -> Iterator[Row]:
    t = PerTensor(run.size(2**24), torch.float32)
    moved = t.x.numel() * 5 // 8  # floats that are as many bytes, read and written
    expected = eager_codes(t.x, *t.factors[1:])
    require_same("quantize", quantize(t.x, t.scale, t.offset), expected)
    candidates = {
        "ours": lambda: quantize(t.x, t.scale, t.offset),
        "peer": lambda: torch.quantize_per_tensor(t.x, SCALE, OFFSET, torch.qint8),
        "compiled": run.compiled(eager_codes, t.x, *t.factors[1:]),
        "eager": lambda: eager_codes(t.x, *t.factors[1:]),
        "limit": lambda: t.y[:moved].copy_(t.x[:moved]),
    }
    yield run.row(Case("quantize", t.of, t.x.numel(), 5, candidates, "ATen"))


# ---- per channel ----

PER_CHANNEL = (Target("limit", 0.85),)
SHORT_ROWS = "The factors of every element are read from a table."
LAYOUTS: list[tuple[tuple[int, ...], int, bool]] = [  # shape, axis, channels last
    ((4096, 4096), 0, False),
    ((4096, 4096), -1, False),
    ((64, 3, 7, 7), 0, False),
    ((32, 256, 56, 56), 1, False),
    ((32, 256, 56, 56), 1, True),
    ((8, 2048, 4096), -1, False),
    ((512, 512, 3, 3), 0, False),
    ((512, 512, 3, 3), 1, False),
]


def per_channel(
    shape: tuple[int, ...], axis: int, channels_last: bool
) -> Callable[[Run], Iterator[Row]]:
    """Against the same tensor with one scale for all of it, which is the limit."""

    def rows(run: Run) -> Iterator[Row]:
        x = hard_values(torch.Size(run.shape(*shape)).numel()).view(run.shape(*shape))
        channels, row = x.size(axis), math.prod(x.shape[axis % x.dim() + 1 :])
        spread = [1] * x.dim()
        spread[axis] = channels
        scale, offset = torch.rand(channels) * 0.05 + 0.01, torch.randint(-9, 9, (channels,))
        offset = offset.int()
        x = x * scale.view(spread)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        factors = [f.float().view(spread) for f in (scale, scale.reciprocal(), offset)]
        one, none = scale[0].clone(), offset[0].clone()

        def ours() -> Tensor:
            return fake_quantize(x, scale, offset, axis=axis)

        of = f"{'x'.join(map(str, x.shape))} axis {axis}" + " channels_last" * channels_last
        require_same(f"fake_quantize {of}", ours(), eager(x, *factors))
        candidates = {
            "ours": ours,
            "peer": lambda: torch.fake_quantize_per_channel_affine(
                x, scale, offset, axis % x.dim(), QMIN, QMAX
            ),
            "compiled": run.compiled(eager, x, *factors),
            "eager": lambda: eager(x, *factors),
            "limit": lambda: fake_quantize(x, one, none),
        }
        yield run.row(
            Case(
                "fake_quantize, per channel", of, x.numel(), 8, candidates, "ATen", "per tensor",
                PER_CHANNEL, SHORT_ROWS if row < 64 else "",
            )
        )  # fmt: skip

    return rows


def size_of(x: Tensor) -> str:
    power = x.numel().bit_length() - 1
    return f"2^{power}" if x.numel() == 2**power else str(x.numel())


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


GROUPS = [
    *(forward(dtype, 2**24) for dtype in FORWARD),
    forward(torch.float32, 2**27),
    forward(torch.float32, 10**6),
    forward(torch.float32, 4096),
    into,
    *(both_ways(dtype) for dtype in FORWARD),
    codes,
    *(per_channel(*layout) for layout in LAYOUTS),
]
