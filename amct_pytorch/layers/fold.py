"""A BatchNorm in evaluation mode as part of the convolution before it.

W' = W * g with g = gamma / sqrt(var + eps) per output channel, b' = (b - mean) * g + beta;
b = 0 where the convolution has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, batch_norm: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, bias, g) in float32, or float64 where the weight is."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    mean, var, gamma, beta = (
        t.detach().to(dtype)
        for t in (
            batch_norm.running_mean,
            batch_norm.running_var,
            batch_norm.weight,
            batch_norm.bias,
        )
    )
    gain = gamma * torch.rsqrt(var + batch_norm.eps)
    folded = weight.detach().to(dtype) * gain.reshape(-1, *[1] * (weight.dim() - 1))
    before = -mean if bias is None else bias.detach().to(dtype) - mean
    return folded, before * gain + beta, gain
