"""Gradients of ops, without what they cost where none is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _binary  # noqa: F401

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]  # (ctx, inputs, output)
Backward = Callable[..., Any]


def differentiable(
    name: str, backward: Backward, setup_context: SetupContext
) -> Callable[..., Any]:
    """Gives the op `name` its gradient and returns a function that calls it, with all arguments.

    `backward` and `setup_context` are those of `torch.library.register_autograd`, which serves
    the callers of `torch.ops.amct_pytorch` and graphs. It costs every call 5 us and one that needs
    a gradient 15, for it enters Python from the dispatcher. The function returned looks whether
    a gradient is asked for before that: it calls the kernel below autograd if none is, else within
    an autograd function of its own, which does the same.
    """
    op = getattr(torch.ops.amct_pytorch, name).default
    # Kernels take any strides. A compiler would make those of eager mode for them, by copies.
    op.tags.append(torch.Tag.flexible_layout)
    torch.library.register_autograd(op, backward, setup_context=setup_context)
    below_autograd, any_requires_grad = (
        torch._C._AutoDispatchBelowAutograd,
        torch._C._any_requires_grad,
    )

    def forward(ctx: Any, *inputs: Any) -> Any:
        with below_autograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)
    # Function.apply without its preparations for torch.func, which take 2 us.
    apply = super(torch.autograd.Function, function).apply

    def call(*inputs: Any) -> Any:
        if traced():
            return op(*inputs)
        if torch.is_grad_enabled() and any_requires_grad(*inputs):
            return apply(*inputs)
        with below_autograd():
            return op(*inputs)

    return call


def traced() -> bool:
    """Whether what is called becomes part of a graph or of a transform of torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def differentiable_once(name: str, of: str) -> Callable[..., Any]:
    """As `differentiable`, for the backward op `name` of the op `of`: its gradient is an error."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{of} is differentiable once, its gradient is not")

    return differentiable(name, backward, lambda ctx, inputs, output: None)
