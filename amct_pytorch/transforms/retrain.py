"""Puts quantizers that learn into a model, and takes them out again for export."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping

import torch
from torch import nn

from ..capability import BY_KIND
from ..config.retrain import RetrainConfig
from ..config.retrain_layer import RetrainLayerConfig
from ..graph.facts import Layer, ModelFacts
from ..layers.finite import is_finite
from ..layers.learned_weight import WeightOptions
from ..layers.range_init import RangeOptions
from ..layers.replace import replace_module
from ..layers.retrain import (
    Retrained,
    RetrainedLayer,
    RetrainOptions,
)
from ..layers.retrain_recurrent import RetrainedRecurrent
from ..records import LayerRecord

logger = logging.getLogger(__name__)

FLOATING = (torch.float32, torch.float16)


def insert_quantizers(model: nn.Module, facts: ModelFacts, config: RetrainConfig) -> None:
    """Puts a `RetrainedLayer` in the place of every enabled layer, in place.

    A BatchNorm that alone follows a convolution moves into its stand-in. Layers that read one value
    with equal settings share one range. Raises TypeError for weights of another floating type.
    """
    followers = {conv: bn for bn, conv in facts.batch_norms.items()}
    owners: dict[tuple[str, RangeOptions], RetrainedLayer] = {}
    for name in (name for name in facts.layers if name in config.enabled):
        layer = facts.layers[name]
        module = model.get_submodule(name)
        _check_dtype(name, module)
        if module._forward_hooks or module._forward_pre_hooks:
            text = (
                "%s: its forward hooks do not run in the model that is trained; register them there"
            )
            logger.warning(text, name)
        batch_norm = None
        if name in followers:
            batch_norm = model.get_submodule(followers[name])
            replace_module(model, batch_norm, nn.Identity())
        options = retrain_options(config, config.layers[name], layer)
        if BY_KIND[layer.kind].recurrent:
            replace_module(model, module, RetrainedRecurrent(name, module, options))
            continue
        stand_in = RetrainedLayer(name, module, options, batch_norm)
        _settle(stand_in, model)
        frozen = batch_norm is not None and not batch_norm.training
        replace_module(model, module, stand_in)
        if batch_norm is not None and frozen:
            batch_norm.eval()
        owner = owners.setdefault((layer.input, options.range), stand_in)
        if owner is not stand_in:
            stand_in.quant_module.share_range_of(owner.quant_module)


def _settle(stand_in: RetrainedLayer, model: nn.Module) -> None:
    """Moves the tensors of a layer without parameters to where the model is."""
    if next(stand_in.sub_module.parameters(), None) is None:
        tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
        stand_in.to(torch.device("cpu") if tensor is None else tensor.device)


def retrain_options(
    config: RetrainConfig, layer_config: RetrainLayerConfig, layer: Layer
) -> RetrainOptions:
    """What the stand-in of `layer` is made with."""
    data, weight = layer_config.retrain_data_config, layer_config.retrain_weight_config
    clips = None
    if data.clip_max is not None and data.clip_min is not None:
        clips = data.clip_max, data.clip_min
    fixed_min = layer.input_op == "Relu" if data.fixed_min is None else data.fixed_min
    shift_n = config.shift_n if layer_config.shift_n is None else layer_config.shift_n
    weight_options = WeightOptions(
        num_bits=weight.num_bits,
        channel_wise=weight.channel_wise,
        learned=weight.algo == "ulq_retrain",
        transposed=layer.kind.startswith("ConvTranspose"),
        groups=layer.groups,
    )
    return RetrainOptions(
        range=RangeOptions(data.num_bits, config.batch_num, fixed_min, clips=clips),
        weight=None if layer.kind == "AvgPool2d" else weight_options,
        force_fp16=config.fakequant_precision_mode == "FORCE_FP16_QUANT",
        shift_n=shift_n,
    )


def retrained_layers(model: nn.Module) -> dict[str, Retrained]:
    """The stand-ins of `model` by the names of their layers."""
    return {m.name: m for m in model.modules() if isinstance(m, Retrained)}


@torch.no_grad()
def remove_quantizers(model: nn.Module) -> dict[str, LayerRecord]:
    """Puts the float layers back, BatchNorms folded, in place; returns the records by layer."""
    records = {}
    for name, stand_in in retrained_layers(model).items():
        module, exported = stand_in.sub_module, stand_in.exported()
        for key, value in exported.parameters.items():
            setattr(module, key, nn.Parameter(value, requires_grad=False))
        for key, parameter in module.named_parameters():
            _check_finite(name, key, parameter)
        records[name] = exported.record
        replace_module(model, stand_in, module)
    return records


def progress_of(layers: Mapping[str, Retrained]) -> dict[str, tuple[int, int]]:
    """Batches seen and needed of the layers whose first range is not found yet."""
    progress = {name: layer.progress() for name, layer in layers.items()}
    return {name: counts for name, counts in progress.items() if counts is not None}


def shift_progress_of(layers: Mapping[str, Retrained]) -> dict[str, tuple[int, int]]:
    """Evaluation batches seen and needed of the layers whose shift factor is not found yet."""
    searches = {n: m.shift_search for n, m in layers.items() if m.shift_search is not None}
    progress = {name: search.progress for name, search in searches.items()}
    return {name: (seen, needed) for name, (seen, needed) in progress.items() if seen < needed}


def _check_finite(name: str, key: str, value: torch.Tensor) -> None:
    if not is_finite(value):
        raise RuntimeError(
            f"{name}: the {key} (with its BatchNorm) has NaN or infinite values: training has "
            "diverged; go back to an earlier checkpoint, or lower the learning rate"
        )


def _check_dtype(name: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if weight is not None and weight.dtype not in FLOATING:
        dtype = str(weight.dtype).removeprefix("torch.")
        raise TypeError(
            f"{name}: expected a weight of dtype float32 or float16, got {dtype}; train it in "
            "float32, under torch.autocast if it shall compute in 16 bits"
        )
