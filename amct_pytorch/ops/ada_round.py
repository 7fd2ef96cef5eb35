"""AdaRound: whether each weight is rounded up or down is learnt.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020), equations
22 to 24: a weight is rounded down, and a stretched sigmoid of a variable of its own is added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._autograd import differentiable, differentiable_once
from ._checks import check_dtype

_ops = torch.ops.amct_pytorch
_FLOAT32 = (torch.float32,)


def ada_round(
    weight: Tensor,
    alpha: Tensor,
    scale: Tensor,
    num_bits: int = 8,
    axis: int | None = None,
    *,
    groups: int = 1,
    hard: bool = False,
) -> Tensor:
    """clamp(floor(weight / scale) + h(alpha), qmin, qmax) * scale, the weight softly rounded.

    h(a) = clamp(1.2 sigmoid(a) - 0.1, 0, 1), qmin = -2^(b-1), qmax = 2^(b-1) - 1, b = num_bits.
    `hard` takes 1 where h >= 1/2 and 0 elsewhere, and has no gradient. Otherwise `alpha` has the
    gradient g * scale * 1.2 sigmoid (1 - sigmoid), and 0 where h is 0 or 1 or the code is clamped;
    weight and scale have none: they are what is rounded. Differentiable once.

    `weight` and `alpha` are float32, of one shape and device; `scale` is float32 with one element,
    or with one per index of dimension `axis`, in `groups` as for `arq_fake_quantize`. CPU and CUDA
    agree to the last bits of exp only; hard results are those of one h or the other.
    Raises TypeError for another dtype, IndexError for an axis that `weight` does not have,
    ValueError for num_bits outside [2, 16] and for groups that do not divide dimension 0 or come
    without axis=1, RuntimeError for an alpha or a scale of another size or device.

    >>> import torch
    >>> weight, scale = torch.tensor([0.3, 0.3, -0.3]), torch.tensor(0.5)
    >>> alpha = torch.tensor([-9.0, 9.0, 0.0])  # down, up, halfway
    >>> ada_round(weight, alpha, scale).tolist()
    [0.0, 0.5, -0.25]
    >>> ada_round(weight, alpha, scale, hard=True).tolist()
    [0.0, 0.5, 0.0]
    """
    for name, value in (("weight", weight), ("alpha", alpha), ("scale", scale)):
        check_dtype(name, value, _FLOAT32)
    return _ada_round(weight.detach(), alpha, scale.detach(), num_bits, axis, groups, hard)


def ada_round_start(
    weight: Tensor, scale: Tensor, axis: int | None = None, *, groups: int = 1
) -> Tensor:
    """The alpha with which `ada_round` leaves a weight within the range of codes as it is.

    -ln(1.2 / (weight / scale - floor(weight / scale) + 0.1) - 1); arguments as for `ada_round`.

    >>> import torch
    >>> weight, scale = torch.tensor([0.3, -0.7]), torch.tensor(0.5)
    >>> ada_round(weight, ada_round_start(weight, scale), scale)
    tensor([ 0.3000, -0.7000])
    """
    for name, value in (("weight", weight), ("scale", scale)):
        check_dtype(name, value, _FLOAT32)
    return _ops.ada_round_start(weight.detach(), scale.detach(), axis, groups)


def ada_round_undecided(alpha: Tensor, beta: float) -> Tensor:
    """sum(1 - |2 h(alpha) - 1|^beta), what is added to the loss so that h becomes 0 or 1.

    A float32 scalar, summed in float64; the gradient of `alpha` is 0 where h is 0, 1 or 1/2.
    Differentiable once. `alpha` is float32 of any shape, else TypeError; beta > 0.

    >>> import torch
    >>> ada_round_undecided(torch.tensor([0.0, 9.0, -9.0]), beta=2.0)  # 1, 0 and 0
    tensor(1.)
    """
    check_dtype("alpha", alpha, _FLOAT32)
    return _ada_round_undecided(alpha, beta)


# ---- fake kernels and autograd ----


def _like(weight: Tensor, groups: int) -> Tensor:
    return torch.empty_like(weight if groups == 1 else weight.contiguous())


@torch.library.register_fake("amct_pytorch::ada_round")
def _(
    weight: Tensor,
    alpha: Tensor,
    scale: Tensor,
    num_bits: int,
    axis: int | None,
    groups: int,
    hard: bool,
) -> Tensor:
    return _like(weight, groups)


@torch.library.register_fake("amct_pytorch::ada_round_backward")
def _(
    grad: Tensor,
    weight: Tensor,
    alpha: Tensor,
    scale: Tensor,
    num_bits: int,
    axis: int | None,
    groups: int,
) -> Tensor:
    return _like(weight, groups)


@torch.library.register_fake("amct_pytorch::ada_round_start")
def _(weight: Tensor, scale: Tensor, axis: int | None, groups: int) -> Tensor:
    return _like(weight, groups)


@torch.library.register_fake("amct_pytorch::ada_round_undecided")
def _(alpha: Tensor, beta: float) -> Tensor:
    return alpha.new_empty([])


@torch.library.register_fake("amct_pytorch::ada_round_undecided_backward")
def _(grad: Tensor, alpha: Tensor, beta: float) -> Tensor:
    return torch.empty_like(alpha)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, alpha, scale, *options, ctx.hard = inputs
    ctx.options = options
    ctx.save_for_backward(weight, alpha, scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_alpha = None
    if ctx.needs_input_grad[1] and not ctx.hard:
        grad_alpha = _ada_round_backward(grad, *ctx.saved_tensors, *ctx.options)
    return None, grad_alpha, None, None, None, None, None


def _setup_undecided(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    alpha, ctx.beta = inputs
    ctx.save_for_backward(alpha)


def _undecided_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (alpha,) = ctx.saved_tensors
    return _ada_round_undecided_backward(grad, alpha, ctx.beta), None


_ada_round = differentiable("ada_round", _backward, _setup_context)
_ada_round_backward = differentiable_once("ada_round_backward", of="ada_round")
_ada_round_undecided = differentiable("ada_round_undecided", _undecided_backward, _setup_undecided)
_ada_round_undecided_backward = differentiable_once("ada_round_undecided_backward", of="ada_round")
