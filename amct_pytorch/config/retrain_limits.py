"""What one layer cannot do of what quantization-aware training is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from ..capability import BY_KIND
from ..graph import Layer
from .limits import (
    Refusal,
    why_not_channel_wise,
    why_not_int4,
    why_not_int16,
    why_not_packed,
    with_part,
)
from .problems import shown
from .retrain_layer import RetrainLayerConfig

_ACT, _WTS = "retrain_data_config", "retrain_weight_config"
# The types of activations that go with each type of weights.
_BESIDE = {"INT8": ("INT8", "INT16"), "INT4": ("INT4", "INT8")}


def refusals(config: RetrainLayerConfig, layer: Layer) -> Iterator[Refusal[RetrainLayerConfig]]:
    """Every setting of `config` that `layer` cannot have."""
    data, weight = config.retrain_data_config, config.retrain_weight_config

    if BY_KIND[layer.kind].recurrent and "INT4" in (data.dst_type, weight.dst_type):
        part = _ACT if data.dst_type == "INT4" else _WTS
        without = with_part(with_part(config, _ACT, dst_type="INT8"), _WTS, dst_type="INT8")
        reason = f"training of {layer.kind} is for 8-bit weights and no 4-bit activations"
        yield Refusal((part, "dst_type"), "INT4", '"INT8"', reason, without)
        return
    if data.num_bits == 16 and (reason := why_not_int16(layer)):
        without = with_part(config, _ACT, dst_type="INT8")
        yield Refusal((_ACT, "dst_type"), data.dst_type, '"INT8"', reason, without)
    if data.num_bits == 4 and (reason := why_not_int4(layer)):
        without = with_part(config, _ACT, dst_type="INT8")
        yield Refusal((_ACT, "dst_type"), data.dst_type, '"INT8"', reason, without)
    has_weights = BY_KIND[layer.kind].weights
    if weight.channel_wise and (reason := why_not_channel_wise(layer)):
        reason = reason if has_weights else f"{layer.kind} has no weights"
        without = with_part(config, _WTS, channel_wise=False)
        yield Refusal((_WTS, "channel_wise"), True, "false", reason, without)
    if not has_weights:
        return  # what else is said of them has no effect
    if weight.num_bits == 4 and (reason := why_not_packed(layer)):
        without = with_part(config, _WTS, dst_type="INT8")
        yield Refusal((_WTS, "dst_type"), "INT4", '"INT8"', reason, without, packing=True)
    if data.dst_type not in (beside := _BESIDE[weight.dst_type]):
        reason = f"activations are {' or '.join(beside)} beside {weight.dst_type} weights"
        without = with_part(config, _ACT, dst_type="INT8")
        allowed = " or ".join(map(shown, beside))
        yield Refusal((_ACT, "dst_type"), data.dst_type, allowed, reason, without)
