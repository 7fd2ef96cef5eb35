"""A value with the gradient of another computation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_gradient_of(value: Tensor, differentiable: Tensor) -> Tensor:
    """`value`, whose gradient goes to `differentiable`, of the same shape."""
    result: Tensor = _WithGradient.apply(value, differentiable)  # type: ignore[no-untyped-call]
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, differentiable: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad
