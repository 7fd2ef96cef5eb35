"""What a layer cannot do of what its configuration for training asks for."""

from __future__ import annotations

from collections.abc import Iterator

from ..capability import BY_KIND
from ..graph import Layer
from .limits import Refusal, why_not_bits, why_not_int16
from .retrain_layer import DATA, PAIRS, WEIGHT, RetrainLayerConfig

RetrainRefusal = Refusal[RetrainLayerConfig]


def retrain_refusals(config: RetrainLayerConfig, layer: Layer) -> Iterator[RetrainRefusal]:
    """Every setting of `config` that `layer` cannot have."""
    can = BY_KIND[layer.kind]
    data, weight = config.retrain_data_config, config.retrain_weight_config
    if refusal := refused_pair(config):
        yield refusal
        return
    if can.recurrent and "INT4" in (data.dst_type, weight.dst_type):
        eight = _with(_with(config, DATA, dst_type="INT8"), WEIGHT, dst_type="INT8")
        part = DATA if data.dst_type == "INT4" else WEIGHT
        reason = f"a {layer.kind} has no 4-bit form"
        yield Refusal((part, "dst_type"), "INT4", '"INT8"', reason, eight)
        return
    if data.num_bits == 16 and (reason := why_not_int16(layer, can)):
        without = _with(config, DATA, dst_type="INT8")
        yield Refusal((DATA, "dst_type"), "INT16", '"INT4" or "INT8"', reason, without)
    if weight.channel_wise and not can.channel_wise:
        reason = f"all weights of {layer.kind} have one scale"
        without = _with(config, WEIGHT, channel_wise=False)
        yield Refusal((WEIGHT, "channel_wise"), True, "false", reason, without)
    if reason := why_not_bits(weight.num_bits, layer, can):
        changes = {"dst_type": "INT8"}
        without = _with(config, WEIGHT, **changes)
        if data.num_bits == 4:  # which goes with 4-bit weights only
            without = _with(without, DATA, **changes)
        yield Refusal((WEIGHT, "dst_type"), weight.dst_type, '"INT8"', reason, without)


def refused_pair(config: RetrainLayerConfig) -> RetrainRefusal | None:
    """The types of activations and weights, if they do not go together."""
    data, weight = config.retrain_data_config, config.retrain_weight_config
    if weight.dst_type == "INT16":
        reason = "weights have 4 or 8 bits"
        without = _with(config, WEIGHT, dst_type="INT8")
        return Refusal((WEIGHT, "dst_type"), "INT16", '"INT4" or "INT8"', reason, without)
    allowed = [act for act, wts in PAIRS if wts == weight.dst_type]
    if data.dst_type in allowed:
        return None
    reason = f"these go with weights of {weight.dst_type}"
    expected = " or ".join(f'"{name}"' for name in allowed)
    without = _with(config, DATA, dst_type="INT8")
    return Refusal((DATA, "dst_type"), data.dst_type, expected, reason, without)


def _with(config: RetrainLayerConfig, part: str, **changes: object) -> RetrainLayerConfig:
    changed = getattr(config, part).model_copy(update=changes)
    return config.model_copy(update={part: changed})
