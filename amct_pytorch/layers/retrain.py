"""What stands for a layer while the model is trained to be quantized.

In training mode inputs and weights are fake-quantized with gradients, and a BatchNorm that follows
runs as it is. In evaluation mode the layer computes what the exported fake_quant graph computes:
BatchNorm folded, integer weights and bias, from the factors that would be recorded now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._traced import SCALE_FLOOR
from ..records import LayerRecord
from .base import AmctLayer
from .checkpoint_names import adopt
from .fold import fold_batch_norm
from .gradient import with_gradient_of
from .integers import Factors, channel_axis, integers_of, to_half_precision
from .learned_range import LearnedRange
from .learned_weight import LearnedWeight, WeightOptions
from .range_init import RangeOptions
from .run import output_size, run_layer
from .shared_input import SharedInput
from .shift_search import ShiftSearch


@dataclass(frozen=True)
class RetrainOptions:
    """What a stand-in is made with."""

    range: RangeOptions
    weight: WeightOptions | None  # None: the layer has no weights
    force_fp16: bool = False
    shift_n: bool = False


@dataclass(frozen=True)
class Exported:
    """What an export needs of a layer: its record, and parameters that differ from the layer's."""

    record: LayerRecord
    parameters: dict[str, Tensor]


class Retrained(AmctLayer):
    """What stands for a layer of any kind; it holds the layer and its quantizers."""

    HELD_AS = ("quant_module", "replaced_module")

    quant_module: Any
    options: RetrainOptions
    shift_search: ShiftSearch | None  # a value here would hide the submodule

    @property
    def sub_module(self) -> nn.Module:
        """The float layer."""
        module: nn.Module = self.quant_module.replaced_module
        return module

    def ranges(self) -> list[tuple[LearnedRange, str]]:
        """The modules and prefixes of the ranges that the layer reads its inputs through."""
        raise NotImplementedError

    def exported(self) -> Exported:
        """What would be exported now; nothing is changed."""
        raise NotImplementedError

    def progress(self) -> tuple[int, int] | None:
        """Batches seen and needed while the first ranges are not found yet, then None."""
        for module, prefix in self.ranges():
            if not module.check_range(prefix):
                return module.range_init(prefix).progress
        return None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        adopt(state_dict, prefix, self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass(frozen=True)
class _Deployed:
    """The float layer as it is exported, and its factors."""

    weight: Tensor | None
    bias: Tensor | None
    factors: Factors


class QuantModule(LearnedRange, LearnedWeight):
    """The layer with its quantizers."""

    def __init__(self, name: str, replaced_module: nn.Module, options: RetrainOptions) -> None:
        super().__init__()
        self.replaced_module = replaced_module
        self.shared = SharedInput()
        # Not a submodule: parameters belong to one place. In a list, which modules do not see.
        self._range_owner = [self]
        self.add_range(name, options.range)
        if options.weight is not None:
            self.add_weight(self.weight, options.weight)
        device = next((p.device for p in replaced_module.parameters()), None)
        if device is not None:
            self.to(device)

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.replaced_module.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.replaced_module, "bias", None)
        return bias

    @property
    def range_owner(self) -> QuantModule:
        """The module that holds the range of this module's input: itself, or one it shares with."""
        return self._range_owner[0]

    def share_range_of(self, owner: QuantModule) -> None:
        """Reads the input through the range of `owner`; its own is dropped."""
        for name in ("acts_clip_max", "acts_clip_min"):
            del self._parameters[name]
        for name in ("clip_max_pre", "clip_min_pre", "scale", "offset"):
            del self._buffers[f"acts_{name}"]
        del self._modules["init_module"]
        self._range_owner = [owner]
        owner.shared.readers += 1
        owner.range_init().readers += 1

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input fake-quantized, once for all layers that share it."""
        owner = self.range_owner
        return owner.shared.get(x, owner.clips().maximum, self, owner.quantize_input)


class RetrainedLayer(Retrained):
    """Stands for the layer `name` and, if it is folded at export, the BatchNorm behind it."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        options: RetrainOptions,
        batch_norm: nn.Module | None = None,
    ) -> None:
        super().__init__(name)
        self.options = options
        self.quant_module = QuantModule(name, module, options)
        self.bn_module = batch_norm
        self.shift_search = None
        if options.shift_n and options.weight is not None:
            per_channel = options.weight.channel_wise or batch_norm is not None
            channels = _out_channels(self.quant_module.weight, options.weight) if per_channel else 1
            search = ShiftSearch(channels, options.range.batch_num)
            self.shift_search = search.to(self.quant_module.weight.device)

    def ranges(self) -> list[tuple[LearnedRange, str]]:
        return [(self.quant_module.range_owner, "acts")]

    def exported(self) -> Exported:
        deployed = self._deployed()
        factors = deployed.factors
        record = LayerRecord(
            scale_d=float(factors.scale_d),
            offset_d=int(factors.offset_d),
            scale_w=tuple(factors.scale_w.tolist()),
            offset_w=(0,) * factors.scale_w.numel(),
            shift_bit=() if factors.shift is None else tuple(factors.shift.tolist()),
            act_type=f"INT{factors.act_bits}",
            wts_type=None if deployed.weight is None else f"INT{factors.wts_bits}",
            fakequant_precision_mode="FORCE_FP16_QUANT" if factors.force_fp16 else None,
        )
        parameters = {"weight": deployed.weight, "bias": deployed.bias}
        return Exported(record, {k: v for k, v in parameters.items() if v is not None})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.first_input(args, kwargs)
        size = output_size(self.sub_module, args, kwargs)
        self.quant_module.range_owner.observe_input(x)
        if self.training:
            if self.shift_search is not None:
                self.shift_search.reset()
            return self._trained(x, size)
        with torch.no_grad():
            exact = self._evaluated(x, size)
        if not torch.is_grad_enabled():
            return exact
        return with_gradient_of(exact, self._trained(x, size))

    def _deployed(self) -> _Deployed:
        module, options = self.quant_module, self.options
        scale_d, offset_d = module.range_owner.range_factors()
        if options.force_fp16:
            scale_d = to_half_precision(scale_d)
        act_bits = options.range.num_bits
        if options.weight is None:
            one = torch.ones_like(scale_d).reshape(1)
            factors = Factors(scale_d, offset_d, act_bits, one, 8, options.force_fp16)
            return _Deployed(None, None, factors)
        weight, bias = module.weight.detach(), module.bias
        scale_w = module.weight_scale(self._signed(weight))
        if self.bn_module is not None:
            folded, folded_bias, gain = fold_batch_norm(weight, bias, self.bn_module)
            weight, bias = folded.to(weight.dtype), folded_bias.to(weight.dtype)
            scale_w = scale_w * gain.abs()
            scale_w = torch.where(scale_w < SCALE_FLOOR, 1.0, scale_w)
        shift = None if self.shift_search is None else self.shift_search.shift()
        bits = options.weight.num_bits
        factors = Factors(scale_d, offset_d, act_bits, scale_w, bits, options.force_fp16, shift)
        return _Deployed(weight, None if bias is None else bias.detach(), factors)

    def _trained(self, x: Tensor, size: list[int] | None) -> Tensor:
        module = self.quant_module
        x = module.quantized_input(x)
        weight = None
        if self.options.weight is not None:
            weight = self._signed(module.quantize_weight(self._signed(module.weight)))
        y = run_layer(module.replaced_module, x, weight, module.bias, size)
        return y if self.bn_module is None else self.bn_module(y)

    def _evaluated(self, x: Tensor, size: list[int] | None) -> Tensor:
        deployed, module = self._deployed(), self.sub_module
        integers = integers_of(module, deployed.weight, deployed.bias, deployed.factors)
        sums = integers.accumulate(module, x, size)
        if self.shift_search is not None and self.quant_module.range_owner.range_init().done:
            self.shift_search.observe(sums, channel_axis(module))
        return integers.finish(module, sums, x.dtype)

    def _signed(self, weight: Tensor) -> Tensor:
        """`weight` with the signs it is deployed with: a BatchNorm of negative gain turns them.

        The extremes are then those of the folded weight, and no code saturates at export that did
        not in training. Twice is once.
        """
        if self.bn_module is None:
            return weight
        gamma: Tensor = self.bn_module.get_parameter("weight").detach()
        sign = torch.where(gamma < 0, -1.0, 1.0).to(weight.dtype)
        return weight * sign.reshape(-1, *[1] * (weight.dim() - 1))


def _out_channels(weight: Tensor, options: WeightOptions) -> int:
    return weight.shape[1] * options.groups if options.transposed else len(weight)
