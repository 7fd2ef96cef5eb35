"""ULQ on an input: a clip range that is trained with the model.

The parameters have the names that checkpoints of the Ascend toolkit have: `acts_clip_max`,
`acts_clip_min` (trained), `acts_clip_max_pre`, `acts_clip_min_pre` (the last valid ones),
`acts_scale` and `acts_offset` (the last used). A second input of one layer has another prefix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops.ulq import ulq, ulq_factors
from .range_init import RangeInit, RangeOptions


class Clips(NamedTuple):
    """The tensors of one range, all float32 and 0-d."""

    maximum: Tensor
    minimum: Tensor
    previous_maximum: Tensor
    previous_minimum: Tensor
    scale: Tensor
    offset: Tensor


class LearnedRange(nn.Module):
    """A module with learned ranges for its inputs, each known by the prefix of its tensors."""

    def add_range(self, name: str, options: RangeOptions, prefix: str = "acts") -> None:
        """Registers the tensors of one range; `name` is the layer's, for messages."""
        first = options.clips or (1.0, 1.0)  # (1, 1): not found yet, see RangeInit.check_done
        for end, value in zip(("max", "min"), first, strict=True):
            self.register_parameter(f"{prefix}_clip_{end}", nn.Parameter(_float32(value)))
        for key in ("clip_max_pre", "clip_min_pre", "scale", "offset"):
            self.register_buffer(f"{prefix}_{key}", _float32(math.nan))
        self.add_module(_init_name(prefix), RangeInit(name, options))

    def clips(self, prefix: str = "acts") -> Clips:
        """The tensors of a range."""
        names = ("clip_max", "clip_min", "clip_max_pre", "clip_min_pre", "scale", "offset")
        return Clips(*(getattr(self, f"{prefix}_{name}") for name in names))

    def range_init(self, prefix: str = "acts") -> RangeInit:
        """What finds the first clips of a range."""
        init: RangeInit = getattr(self, _init_name(prefix))
        return init

    def check_range(self, prefix: str = "acts") -> bool:
        """Whether there are clips, found or given; reads values on the host until there are."""
        clips = self.clips(prefix)
        init = self.range_init(prefix)
        return init.check_done(clips.maximum, clips.minimum)

    def observe_input(self, x: Tensor, prefix: str = "acts") -> None:
        """Lets the first clips be found from `x`, in any mode; nothing once they are."""
        clips = self.clips(prefix)
        self.range_init(prefix).observe(x, clips.maximum, clips.minimum)

    def quantize_input(self, x: Tensor, prefix: str = "acts") -> Tensor:
        """`x` fake-quantized as in training, with gradients.

        In training mode clips that became invalid are repaired in place.
        """
        clips, options = self.clips(prefix), self.range_init(prefix).options
        y, scale, offset, maximum, minimum = ulq(
            x,
            clips.maximum.float(),
            clips.minimum.float(),
            options.num_bits,
            fixed_min=options.fixed_min,
            asymmetric=options.asymmetric,
            previous=(clips.previous_maximum.float(), clips.previous_minimum.float()),
        )
        if not self.training:
            return y
        with torch.no_grad():
            used = [maximum, minimum, maximum, minimum, scale, offset]
            torch._foreach_copy_(
                list(clips), [value.to(kept.dtype) for value, kept in zip(used, clips, strict=True)]
            )
        return y

    def range_factors(self, prefix: str = "acts") -> tuple[Tensor, Tensor]:
        """(scale, offset) of the present clips; nothing is changed."""
        clips, options = self.clips(prefix), self.range_init(prefix).options
        scale, offset, _, _ = ulq_factors(
            clips.maximum.detach().float(),
            clips.minimum.detach().float(),
            options.num_bits,
            fixed_min=options.fixed_min,
            asymmetric=options.asymmetric,
            previous=(clips.previous_maximum.float(), clips.previous_minimum.float()),
        )
        return scale, offset


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _init_name(prefix: str) -> str:
    return "init_module" if prefix == "acts" else f"{prefix}_init_module"
