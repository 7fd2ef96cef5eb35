"""ARQ on the weights: factors for the record, fake-quantized weights for model and graph."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config.layer import LayerConfig
from ..graph.capture import Capture
from ..graph.facts import ModelFacts, main_nodes
from ..graph.lazy_array import LazyArray
from ..graph.site import locate, replace_weight
from ..layers.channels import channels_first, channels_restored
from ..layers.finite import is_finite
from ..ops._checks import check_dtype
from ..ops.arq import arq
from ..ops.fake_quantize import fake_quantize
from ..records import LayerRecord

logger = logging.getLogger(__name__)


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
        _check_finite(name, module)
        scale = _quantize_weight(name, module, kind, bits, config.weight_quant_params.channel_wise)
        records[name] = LayerRecord(
            scale_w=tuple(scale.tolist()),
            offset_w=(0,) * scale.numel(),
            act_type=act_type,
            wts_type=f"INT{bits}",
            fakequant_precision_mode=mode,
        )
    return records


def write_weights(
    capture: Capture, model: nn.Module, facts: ModelFacts, layers: Collection[str]
) -> None:
    """Lets the captured graph have the weights that `layers` have in `model`; none is copied."""
    for name in layers:
        kind = facts.layers[name].kind
        if kind == "AvgPool2d":
            continue
        weight = LazyArray.of_tensor(model.get_submodule(name).weight)  # type: ignore[arg-type]
        replace_weight(locate(main_nodes(capture, name, kind)[0]), name, weight)


def _check_finite(name: str, module: Any) -> None:
    for key in ("weight", "bias"):
        value: Tensor | None = getattr(module, key)
        if value is None:
            continue
        check_dtype(f"{name}: {key}", value)
        if not is_finite(value):
            first = (~torch.isfinite(value)).nonzero()[0].tolist()
            raise RuntimeError(
                f"{name}: the {key} has NaN or infinite values, the first at index {first}; "
                "repair the model, or skip the layer"
            )


@torch.no_grad()
def _quantize_weight(
    name: str, module: Any, kind: str, num_bits: int, channel_wise: bool
) -> Tensor:
    weight: Tensor = module.weight
    transposed, groups = kind.startswith("ConvTranspose"), getattr(module, "groups", 1)
    rows = channels_first(weight.detach(), transposed, groups)
    axis = 0 if channel_wise else None
    scale, offset = arq(rows, num_bits, axis)
    _warn_of_tiny_channels(name, rows, scale)
    quantized = fake_quantize(rows, scale, offset, num_bits, axis)
    quantized = channels_restored(quantized, transposed, groups)
    weight.copy_(quantized)  # in place: what the captured graph holds is this memory
    return scale.reshape(-1).cpu()


def _warn_of_tiny_channels(name: str, rows: Tensor, scale: Tensor) -> None:
    """Channels whose range is under the floor get scale 1 and are quantized to zero."""
    if not (scale == 1.0).any():
        return
    largest = rows.float().abs().flatten(1).amax(1) if scale.dim() else rows.float().abs().amax()
    erased = ((scale == 1.0) & (largest > 0) & (largest < 0.5)).reshape(-1).nonzero().flatten()
    if erased.numel():
        where = f"in output channels {_some(erased.tolist())} " if scale.dim() else ""
        logger.warning(
            "%s: the weights %sare real but too small for a scale and become zero", name, where
        )


def _some(channels: list[int], limit: int = 8) -> str:
    shown = ", ".join(map(str, channels[:limit]))
    return shown if len(channels) <= limit else f"{shown} and {len(channels) - limit} more"
