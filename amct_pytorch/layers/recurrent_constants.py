"""What the fake_quant graph holds of an LSTM or GRU, and what it computes of it: as tensors.

    x, h = codes_x * scale_d, codes_h * scale_h, h the first hidden state only
    W, R = codes_w * scale_w, codes_r * scale_r
    b    = rint(b / (scale_w * scale_d)) * (scale_w * scale_d), that of R with scale_r and scale_h

Under FORCE_FP16_QUANT the weights have the scale that the truncated product leaves to them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..ops.fake_quantize import fake_quantize
from .integers import bias_codes, dequant_scale, row_codes
from .run_recurrent import State, recurrent_weights, run_recurrent


@dataclass(frozen=True)
class RecurrentFactors:
    """The factors of an LSTM or GRU in the order of torch's gates: float32 and int32 tensors."""

    scale_d: Tensor
    offset_d: Tensor
    scale_w: Tensor  # [G] or [G * H]
    scale_h: Tensor
    offset_h: Tensor
    scale_r: Tensor  # as scale_w
    act_bits: int
    wts_bits: int
    force_fp16: bool = False


@dataclass(frozen=True)
class RecurrentConstants:
    """The factors of an LSTM or GRU and its quantized weights and biases, as float32."""

    factors: RecurrentFactors
    weights: list[Tensor]  # in the order of `recurrent_weights`

    def to(self, device: torch.device) -> RecurrentConstants:
        """The same constants on another device; itself where they are there already."""
        if self.factors.scale_d.device == device:
            return self
        own = {field.name: getattr(self.factors, field.name) for field in fields(self.factors)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in own.items() if isinstance(v, Tensor)}
        weights = [weight.to(device) for weight in self.weights]
        return RecurrentConstants(replace(self.factors, **moved), weights)

    def run(self, module: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Output and last state in the dtype of `x`; float32 arithmetic, also under autocast."""
        factors, bits = self.factors, self.factors.act_bits
        codes = fake_quantize(x.float(), factors.scale_d, factors.offset_d, bits)
        h = fake_quantize(state[0].float(), factors.scale_h, factors.offset_h, bits)
        rest = tuple(s.float() for s in state[1:])
        with torch.autocast(x.device.type, enabled=False):
            output, last = run_recurrent(module, codes, (h, *rest), self.weights)
        return output.to(x.dtype), tuple(s.to(x.dtype) for s in last)


def constants_of(module: Any, factors: RecurrentFactors) -> RecurrentConstants:
    """The constants of `module` under `factors`."""
    w_ih, w_hh, *biases = recurrent_weights(module)
    weights, deq_scales = [], []
    for weight, scale, act_scale in (
        (w_ih, factors.scale_w, factors.scale_d),
        (w_hh, factors.scale_r, factors.scale_h),
    ):
        deq_scale = dequant_scale(scale, act_scale, factors.force_fp16)
        deq_scales.append(deq_scale)
        rows = weight.detach().float().reshape(scale.numel(), -1)
        codes = row_codes(rows, scale, factors.wts_bits).float()
        codes = torch.where(rows.isnan(), torch.nan, codes)
        by_row = deq_scale / act_scale if factors.force_fp16 else scale
        weights.append((codes * by_row[:, None]).reshape(weight.shape))
    for bias, deq_scale in zip(biases, deq_scales, strict=False):
        by_row = deq_scale.repeat_interleave(len(bias) // deq_scale.numel())
        weights.append((bias_codes(bias, by_row) * by_row.double()).float())
    return RecurrentConstants(factors, weights)
