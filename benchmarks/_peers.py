"""Learned quantizers of others, which several benchmarks time."""

from __future__ import annotations

import torch
from torch import Tensor

QMIN, QMAX = -128, 127


def eager_lsq(x: Tensor, scale: Tensor) -> Tensor:
    """Learned step size quantization (Esser et al. 2020), one scale or one per output channel."""
    gradient = 1.0 / (x.numel() * QMAX / scale.numel()) ** 0.5
    scale = scale * gradient + (scale * (1 - gradient)).detach()
    shaped = scale.reshape(-1, *[1] * (x.dim() - 1)) if scale.numel() > 1 else scale
    codes = (x / shaped).clamp(QMIN, QMAX)
    return (codes + (codes.round() - codes).detach()) * shaped


def torch_learnable(x: Tensor, scale: Tensor) -> Tensor:
    zeros, factor = torch.zeros_like(scale), 1.0
    if scale.numel() == 1:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zeros, QMIN, QMAX, factor)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, zeros, 0, QMIN, QMAX, factor)
