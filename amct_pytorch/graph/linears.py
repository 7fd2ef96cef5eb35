"""The Linear layers of a model, by name: facts that need no capture of its graph."""

from __future__ import annotations

from torch import nn

from .facts import Layer, ModelFacts


def linear_facts(model: nn.Module) -> ModelFacts:
    """The facts of a model of which only Linear layers (and subclasses) are of interest.

    >>> list(linear_facts(nn.Sequential(nn.Linear(4, 2), nn.ReLU())).layers)
    ['0']
    """
    layers = {
        name: Layer(
            name,
            "Linear",
            None,
            has_bias=module.bias is not None,
            in_channels=module.in_features,
            out_channels=module.out_features,
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    modules = {name: type(m).__name__ for name, m in model.named_modules(remove_duplicate=False)}
    return ModelFacts(layers, modules, kinds=("Linear",))
