"""Quantization of a weight during training: ARQ from its extremes, or a learned scale (ULQ).

The tensors have the names that checkpoints of the Ascend toolkit have: `wts_scales` (a parameter
when it is learned) and `wts_offsets` (zeros).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._traced import SCALE_FLOOR
from ..ops.arq import arq_fake_quantize_scale
from ..ops.ulq_scale import ulq_scale


@dataclass(frozen=True)
class WeightOptions:
    """How a weight is quantized during training."""

    num_bits: int = 8
    channel_wise: bool = True
    learned: bool = False  # ulq_retrain instead of arq_retrain
    transposed: bool = False  # [Cin, Cout/groups, ...]
    groups: int = 1
    reciprocal: bool = False  # the parameter holds 1 / scale

    @property
    def layout(self) -> dict[str, Any]:
        """The arguments of the ops that say where the output channels are."""
        if not self.channel_wise:
            return {"axis": None}
        if not self.transposed:
            return {"axis": 0}
        return {"axis": 1, "groups": self.groups}


class LearnedWeight(nn.Module):
    """A module with quantized weights, each known by the prefix of its tensors."""

    def add_weight(self, weight: Tensor, options: WeightOptions, prefix: str = "wts") -> None:
        """Registers the tensors for a weight of this shape."""
        setattr(self, f"{prefix}_options", options)
        scales = _extremes(weight, options)
        if options.learned:
            self.register_parameter(f"{prefix}_scales", nn.Parameter(scales))
            # As long as it has these values a learned scale is not in use yet.
            self.register_buffer(f"{prefix}_initial", scales.clone(), persistent=False)
            setattr(self, f"{prefix}_started", False)
        else:
            self.register_buffer(f"{prefix}_scales", scales)
        self.register_buffer(f"{prefix}_offsets", torch.zeros_like(scales))

    def quantize_weight(self, weight: Tensor, prefix: str = "wts") -> Tensor:
        """`weight` fake-quantized as in training; the weight itself is not changed.

        A learned scale starts from the extremes of the weight in the first call in training.
        """
        options: WeightOptions = getattr(self, f"{prefix}_options")
        scales: Tensor = getattr(self, f"{prefix}_scales")
        if not options.learned:
            quantized, scale = arq_fake_quantize_scale(weight, options.num_bits, **options.layout)
            if self.training:
                with torch.no_grad():
                    scales.copy_(scale.reshape(-1))
            return quantized
        if not getattr(self, f"{prefix}_started"):
            first = self._learned(weight, options, prefix)
            if not self.training:
                scales = first
            else:
                with torch.no_grad():
                    scales.copy_(first)
                setattr(self, f"{prefix}_started", True)
        return ulq_scale(
            weight,
            scales.float(),
            options.num_bits,
            reciprocal=options.reciprocal,
            **options.layout,
        )

    @torch.no_grad()
    def weight_scale(self, weight: Tensor, prefix: str = "wts") -> Tensor:
        """The scales, float32 [1] or [Cout], that `quantize_weight` uses; nothing is changed."""
        options: WeightOptions = getattr(self, f"{prefix}_options")
        if not options.learned:
            return _extremes(weight, options)
        started = getattr(self, f"{prefix}_started")
        stored = getattr(self, f"{prefix}_scales").detach().float()
        scales = stored if started else self._learned(weight, options, prefix)
        scales = scales.reciprocal() if options.reciprocal else scales
        return scales.clamp(min=SCALE_FLOOR)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Learned scales that were saved are in use, also those that equal the initial ones."""
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for flag in [name for name in self.__dict__ if name.endswith("_started")]:
            scales = state_dict.get(f"{prefix}{flag.removesuffix('_started')}_scales")
            if scales is not None:  # NaN where a checkpoint of the Ascend toolkit has none yet
                setattr(self, flag, bool(scales.isfinite().all()))

    def _learned(self, weight: Tensor, options: WeightOptions, prefix: str) -> Tensor:
        """The learned scales, or where there are none yet those of the extremes."""
        scales: Tensor = getattr(self, f"{prefix}_scales").detach().float()
        fresh = (scales == getattr(self, f"{prefix}_initial").float()) | ~scales.isfinite()
        return torch.where(fresh, _extremes(weight, options), scales)


@torch.no_grad()
def _extremes(weight: Tensor, options: WeightOptions) -> Tensor:
    """What is stored for the scales of ARQ."""
    _, scale = arq_fake_quantize_scale(weight.detach(), options.num_bits, **options.layout)
    scale = scale.reshape(-1)
    return scale.reciprocal() if options.reciprocal and options.learned else scale
