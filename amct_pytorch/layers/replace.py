"""Swapping modules of a model in place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` stands in `model`, under every name it has, in its mode."""
    replace_modules(model, {old: new})


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replaces many modules in one pass over `model`."""
    for old, new in replacements.items():
        kept = set(old.modules())  # what moves into `new` keeps its own mode
        for module in new.modules():
            if module not in kept:
                module.training = old.training
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is None or child not in replacements:
                continue
            if parent is not replacements[child]:
                parent._modules[name] = replacements[child]
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its fused inference path would read the layer's weight and not call `new`.
                    parent.activation_relu_or_gelu = 0
