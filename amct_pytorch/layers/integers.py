"""The integers of a quantized layer, and what it computes of them: as tensors on its device.

    codes = clamp(rint(x * fl(1/scale_d)) + offset_d) - offset_d
    y = (layer(codes; weight codes, bias codes) [>> N << N]) * deq_scale

These are the rules that the exported graphs follow; nothing here reads a value on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.fake_quantize import dequantize, quantize
from .channels import channels_first, channels_restored
from .run import run_layer

FP16_MIN_NORMAL, FP16_MAX = 2.0**-14, 65504.0
INT16_MIN, INT16_MAX = -(2.0**15), 2.0**15 - 1
_TRUNCATED_BITS = 13  # of the 23 of a float32 mantissa


@dataclass(frozen=True)
class Factors:
    """The factors of one layer as its record has them: float32 and int32 tensors."""

    scale_d: Tensor  # 0-d
    offset_d: Tensor  # 0-d, int32
    act_bits: int
    scale_w: Tensor  # [1] or [Cout]
    wts_bits: int
    force_fp16: bool = False
    shift: Tensor | None = None  # N, int32 [1] or [Cout]


@dataclass(frozen=True)
class Integers:
    """What a quantized layer holds: integer-valued float32 weight and bias, and its scales."""

    factors: Factors
    weight: Tensor | None
    bias: Tensor | None
    deq_scale: Tensor

    def to(self, device: torch.device) -> Integers:
        """The same integers on another device; itself where they are there already."""
        if self.deq_scale.device == device:
            return self
        own = {field.name: getattr(self.factors, field.name) for field in fields(Factors)}
        factors = Factors(**{k: _moved(v, device) for k, v in own.items()})
        tensors = (_moved(t, device) for t in (self.weight, self.bias, self.deq_scale))
        return Integers(factors, *tensors)

    def run(self, module: nn.Module, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The output of the quantized layer; float32 arithmetic, also under autocast."""
        return self.finish(module, self.accumulate(module, x, output_size), x.dtype)

    def accumulate(
        self, module: nn.Module, x: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """The sums of products before dequantization."""
        factors = self.factors
        with torch.autocast(x.device.type, enabled=False):  # sums of integers overflow float16
            codes = activation_codes(x, factors.scale_d, factors.offset_d, factors.act_bits)
            return run_layer(module, codes, self.weight, self.bias, output_size)

    def finish(self, module: nn.Module, sums: Tensor, dtype: torch.dtype) -> Tensor:
        """Shift, if there is one, and dequantization."""
        if self.factors.shift is not None:
            step = torch.exp2(_per_channel(module, self.factors.shift.float(), sums))
            shifted = torch.floor(sums / step).clamp(INT16_MIN, INT16_MAX) * step
            sums = torch.where(step > 1, shifted, sums)
        return (sums * _per_channel(module, self.deq_scale, sums)).to(dtype)


def integers_of(
    module: nn.Module, weight: Tensor | None, bias: Tensor | None, factors: Factors
) -> Integers:
    """The integers of `module` with the float `weight` and `bias`."""
    deq_scale = dequant_scale(factors.scale_w, factors.scale_d, factors.force_fp16)
    codes = None if weight is None else weight_codes(module, weight, factors).float()
    bias = None if bias is None else bias_codes(bias, deq_scale).float()
    return Integers(factors, codes, bias, deq_scale)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def activation_codes(x: Tensor, scale: Tensor, offset: Tensor, num_bits: int) -> Tensor:
    """Codes of `x` without their offset, as float32; NaN where `x` is."""
    codes = dequantize(quantize(x, scale, offset, num_bits), torch.ones_like(scale), offset)
    return torch.where(x.isnan(), torch.nan, codes)


def weight_codes(module: Any, weight: Tensor, factors: Factors) -> Tensor:
    """int8 codes of a weight, in its own layout."""
    transposed = is_transposed(module)
    groups = getattr(module, "groups", 1)
    rows = channels_first(weight.detach(), transposed, groups)
    codes = row_codes(rows, factors.scale_w, factors.wts_bits)
    return channels_restored(codes, transposed, groups)


def row_codes(rows: Tensor, scale_w: Tensor, num_bits: int) -> Tensor:
    """int8 codes of a weight [Cout, ...] under one scale, or one for each output channel."""
    axis = 0 if scale_w.numel() > 1 else None
    scale = scale_w if axis == 0 else scale_w.reshape(())
    return quantize(rows, scale, torch.zeros_like(scale, dtype=torch.int32), num_bits, axis)


def bias_codes(bias: Tensor, deq_scale: Tensor) -> Tensor:
    """rint(bias / deq_scale) in float64, not yet limited to int32."""
    return torch.round(bias.detach().double() / deq_scale.double())


def dequant_scale(scale_w: Tensor, scale_d: Tensor, force_fp16: bool) -> Tensor:
    """fl(scale_w * scale_d); its low 13 bits are cleared under FORCE_FP16_QUANT."""
    product = scale_w * scale_d
    if not force_fp16:
        return product
    bits = product.contiguous().view(torch.int32)
    return (bits >> _TRUNCATED_BITS << _TRUNCATED_BITS).view(torch.float32)


def to_half_precision(scale: Tensor) -> Tensor:
    """The scale as FORCE_FP16_QUANT records it: in half precision.

    Outside the normal range of float16 the square of the rounded root stands for it.

    >>> round(to_half_precision(torch.tensor(0.0123456)).item(), 8)
    0.01234436
    """
    root = scale.sqrt().half().float()
    normal = (scale >= FP16_MIN_NORMAL) & (scale <= FP16_MAX)
    return torch.where(normal, scale.half().float(), root * root)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight of `module` has its input channels first."""
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)


def channel_axis(module: nn.Module) -> int:
    """The dimension of the output channels in an output of `module`."""
    return -1 if isinstance(module, nn.Linear) else 1


def _per_channel(module: nn.Module, values: Tensor, output: Tensor) -> Tensor:
    """One value, or one for each output channel, shaped against the output of `module`."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape(-1, *[1] * (output.dim() - 2 if channel_axis(module) == 1 else 0))
