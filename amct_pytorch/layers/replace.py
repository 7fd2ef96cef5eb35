"""Swapping modules of a model in place."""

from __future__ import annotations

from torch import nn


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` stands in `model`, under every name it has, in its mode."""
    kept = set(old.modules())  # what moves into `new` keeps its own mode
    for module in new.modules():
        if module not in kept:
            module.training = old.training
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old and parent is not new:
                parent._modules[name] = new
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its fused inference path would read the layer's weight and not call `new`.
                    parent.activation_relu_or_gelu = 0
