"""AdaRound of a model, layer by layer in the order of execution, on recorded batches.

A layer learns to give what it gives in the float model, from the inputs that it gets in the
rounded one: those before it are rounded already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.layer import AdaConfig
from ..graph.activation import Activation
from ..layers.replay import Replay
from ..layers.run import output_size
from .adaround import Reconstruction, Sample, learn_rounding
from .adaround_progress import AdaRoundProgress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounding:
    """A layer whose rounding is learnt."""

    config: AdaConfig
    weight: Tensor  # in float
    scale: tuple[float, ...]
    activation: Activation | None  # what alone reads its output


class _ReachedError(Exception):
    """Ends a forward at the layer of interest; one that a model catches costs time only."""


def round_layers(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    roundings: Mapping[str, Rounding],
    replay: Replay,
    progress: AdaRoundProgress,
) -> None:
    """Gives the `modules` of `model` their learnt weights, in place; all of them or, in case of
    an error, none.

    Args:
        model: its layers are rounded to nearest; it is in evaluation mode.
        modules: the layers in it, in the order of execution.
        roundings: how each is rounded.
        replay: what the model is called on.
        progress: told of each layer and iteration.
    """
    nearest = {name: _weight(module) for name, module in modules.items()}
    floats = {name: roundings[name].weight.to(nearest[name]) for name in modules}
    rounded = dict(nearest)
    try:
        for name, module in modules.items():
            _set_weights(modules, floats)
            targets = _calls(model, module, replay)
            _set_weights(modules, rounded)
            inputs = _calls(model, module, replay)
            samples = _samples(module, inputs, targets)
            if not samples:
                logger.warning("%s: no batch reached it: its weights are rounded to nearest", name)
            rounding = roundings[name]
            scale = torch.tensor(rounding.scale, dtype=torch.float32, device=nearest[name].device)
            layer = Reconstruction(module, scale, rounding.config, rounding.activation)
            with progress.layer(name, rounding.config.num_iteration):
                rounded[name] = learn_rounding(
                    name, layer, floats[name], nearest[name], samples, progress.report
                )
    except BaseException:
        rounded = nearest
        raise
    finally:
        _set_weights(modules, rounded)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, then every module in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _calls(model: nn.Module, layer: nn.Module, replay: Replay) -> list[Any]:
    """(arguments, keyword arguments, output) of the layer in every call of `model`, None where
    it did not run; a forward ends behind the layer.
    """
    found: list[Any] = []

    def reached(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found[-1] = (args, kwargs, output)
        raise _ReachedError

    handle = layer.register_forward_hook(reached, with_kwargs=True)
    try:
        for args, kwargs in replay:
            found.append(None)
            try:
                with torch.no_grad():
                    model(*args, **kwargs)
            except _ReachedError:
                pass
    finally:
        handle.remove()
    return found


def _samples(module: nn.Module, inputs: list[Any], targets: list[Any]) -> list[Sample]:
    samples = []
    for call, target in zip(inputs, targets, strict=True):
        if call is not None and target is not None:
            args, kwargs, _ = call
            x = args[0] if args else kwargs["input"]
            samples.append(
                Sample(x.detach(), target[2].detach(), output_size(module, args, kwargs))
            )
    return samples


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight.data
    return weight


def _set_weights(modules: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    for name, module in modules.items():
        module.weight.data = weights[name]
