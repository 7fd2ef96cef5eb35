"""Factors of the weights for the record, weights rounded to nearest for model and graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..capability import BY_KIND
from ..config.layer import AdaConfig, LayerConfig, WeightConfig
from ..graph.capture import Capture
from ..graph.facts import ModelFacts, main_nodes
from ..graph.lazy_array import LazyArray
from ..graph.site import locate, replace_weight
from ..layers.channels import channels_first, channels_restored
from ..layers.integers import is_transposed
from ..ops.ada_scale import ada_scale
from ..ops.arq import arq
from ..ops.fake_quantize import fake_quantize
from ..records import LayerRecord
from .quantize_recurrent import quantize_recurrent, write_recurrent
from .weight_checks import check_values, warn_of_tiny_channels


def quantize_weights(
    model: nn.Module,
    facts: ModelFacts,
    layers: Mapping[str, LayerConfig],
    precision_mode: str = "DEFAULT",
) -> dict[str, LayerRecord]:
    """Replaces the weights of `layers` by their fake-quantized values; returns their records.

    Raises TypeError for weights that are not float32, float16 or bfloat16 and RuntimeError for NaN
    or infinity in them, before anything is replaced in that layer; both name it.
    """
    records = {}
    mode = None if precision_mode == "DEFAULT" else precision_mode
    for name, config in layers.items():
        act_type = f"INT{config.activation_quant_params.num_bits}"
        kind = facts.layers[name].kind
        if kind == "AvgPool2d":
            records[name] = LayerRecord(
                scale_w=(1.0,), offset_w=(0,), act_type=act_type, fakequant_precision_mode=mode
            )
            continue
        bits = config.weight_quant_params.num_bits
        module: Any = model.get_submodule(name)
        if BY_KIND[kind].recurrent:
            records[name] = quantize_recurrent(name, module, kind, config, mode)
            continue
        check_values(name, {"weight": module.weight, "bias": module.bias})
        scale = _quantize_weight(name, module, config.weight_quant_params)
        records[name] = LayerRecord(
            scale_w=tuple(scale.tolist()),
            offset_w=(0,) * scale.numel(),
            act_type=act_type,
            wts_type=f"INT{bits}",
            fakequant_precision_mode=mode,
        )
    return records


def float_weights(model: nn.Module, layers: Mapping[str, LayerConfig]) -> dict[str, Tensor]:
    """Copies of the weights of the AdaRound layers, which `quantize_weights` changes in place."""
    return {
        name: model.get_submodule(name).weight.detach().clone()  # type: ignore[operator]
        for name, config in layers.items()
        if isinstance(config.weight_quant_params, AdaConfig)
    }


def write_weights(
    capture: Capture, model: nn.Module, facts: ModelFacts, layers: Collection[str]
) -> None:
    """Lets the captured graph have the weights that `layers` have in `model`; none is copied."""
    for name in layers:
        kind = facts.layers[name].kind
        if kind == "AvgPool2d":
            continue
        module: Any = model.get_submodule(name)
        if BY_KIND[kind].recurrent:
            write_recurrent(capture, module, name, kind)
            continue
        weight = LazyArray.of_tensor(module.weight)
        site = locate(main_nodes(capture, name, kind)[0])
        assert site.weight is not None
        if weight.dtype != site.weight.dtype:  # the user's model.half() after the capture
            weight = weight.astype(site.weight.dtype.type)
        replace_weight(site, name, weight)


@torch.no_grad()
def _quantize_weight(name: str, module: Any, config: WeightConfig) -> Tensor:
    weight: Tensor = module.weight
    transposed, groups = is_transposed(module), getattr(module, "groups", 1)
    rows = channels_first(weight.detach(), transposed, groups)
    axis = 0 if config.channel_wise else None
    if isinstance(config, AdaConfig):
        scale = ada_scale(rows, config.num_bits, axis)
        offset = torch.zeros_like(scale, dtype=torch.int32)
    else:
        scale, offset = arq(rows, config.num_bits, axis)
    warn_of_tiny_channels(name, rows, scale)
    # In place: what the captured graph holds is this memory.
    fake_quantize(rows, scale, offset, config.num_bits, axis, out=rows)
    if transposed:
        weight.copy_(channels_restored(rows, transposed, groups))
    return scale.reshape(-1).cpu()
