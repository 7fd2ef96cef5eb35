"""The factors of DMQ balancing, by which range moves from an activation into the weight.

Channels of very different range share one scale in a quantized activation. With a factor f for
each input channel, x / f and weight * f compute the same and differ less in range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _binary  # noqa: F401
from ._checks import check_dtype

_ops = torch.ops.amct_pytorch


def dmq_factor(act_max: Tensor, weight_max: Tensor, migration_strength: float = 0.5) -> Tensor:
    """The factors f = a^s / w^(1-s), float32 of shape [C], for s = `migration_strength`.

    `act_max` and `weight_max` are the largest magnitudes of each input channel, float32, float16 or
    bfloat16 of shape [C]; what is below 2^-23 counts as zero. With A the largest a / f and W the
    largest w * f over the channels where neither is zero, f is a / A where only w is zero, W / w
    where only a is zero, and 1 where both are. Without a channel that has both, all are 1.
    The arithmetic is float64, rounded once. Not differentiable.
    Raises TypeError for another dtype, ValueError for different lengths and a strength outside
    [0.2, 0.8], RuntimeError for values that are negative or not finite and for a factor that is
    not between 2^-23 and 2^23.

    >>> import torch
    >>> dmq_factor(torch.tensor([4.0, 0.0, 2.0, 0.0]), torch.tensor([2.0, 3.0, 0.0, 0.0]))
    tensor([1.4142, 0.9428, 0.7071, 1.0000])
    """
    check_dtype("act_max", act_max)
    check_dtype("weight_max", weight_max)
    return _ops.dmq_factor(act_max.detach(), weight_max.detach(), migration_strength)


@torch.library.register_fake("amct_pytorch::dmq_factor")
def _(act_max: Tensor, weight_max: Tensor, migration_strength: float) -> Tensor:
    return act_max.new_empty(act_max.shape, dtype=torch.float32)
