"""Calibration of a model with AdaRound layers: the user's batches are kept and used twice.

While the user calls the model its layers only count. With the last batch the roundings are learnt
on all of them, then the activations are observed, so that their factors belong to the final
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..layers.calibrate import CalibratedLayer, Calibration
from ..layers.replay import Replay
from .adaround_progress import AdaRoundProgress
from .reconstruct import Rounding, evaluating, round_layers


@dataclass
class AdaRoundCalibration:
    """Follows the forwards of one model until it has seen its batches."""

    calibration: Calibration
    roundings: Mapping[str, Rounding]  # in the order of execution
    rounded: Callable[[nn.Module], None]  # told of the model with its final weights
    shown: bool  # whether there is a bar
    replay: Replay = field(init=False)
    _depth: int = field(default=0, init=False)  # of calls of the whole model

    def __post_init__(self) -> None:
        self.replay = Replay(self.calibration.batch_num)

    def follow(self, model: nn.Module) -> None:
        """Before the record keeper does, for which the whole is one forward."""
        self.calibration.deferred = self.counted
        # Before other hooks, which may change the arguments and will do so again.
        model.register_forward_pre_hook(self.enter, with_kwargs=True, prepend=True)
        model.register_forward_hook(self.passed)
        model.register_forward_hook(self.leave, always_call=True)

    def counted(self, name: str) -> None:
        """A layer has run."""
        calibration = self.calibration
        count, needed = calibration.seen[name] + 1, calibration.batch_num
        if count >= needed and not self._depth:
            raise RuntimeError(
                f"{name}: this is batch {count} of {needed}, but only {len(self.replay)} were "
                "calls of the whole model: AdaRound runs the model again on its batches, so call "
                "the model that quantize_model returned, not a part of it"
            )
        # The last is seen when all is done.
        calibration.seen[name] = min(count, needed - 1)

    def enter(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self.replay.begin(model, args, kwargs)

    def passed(self, model: nn.Module, args: Any, output: Any) -> None:
        """A forward did not fail."""
        if self._depth != 1:
            return
        self.replay.end(model, args, output)
        if self.replay.complete:
            self._calibrate(model)

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _calibrate(self, model: nn.Module) -> None:
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        # The user may call under inference_mode, in which nothing can be learnt.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(devices),
            evaluating(model),
        ):
            self._learn(model)
            self._forget(model)
            self.rounded(model)
            self.calibration.deferred = None
            self.calibration.float_weights = {}  # of no more use
            self.calibration.seen = dict.fromkeys(self.calibration.seen, 0)
            self.replay.run(model)

    def _learn(self, model: nn.Module) -> None:
        modules = {}
        for module in model.modules():
            if isinstance(module, CalibratedLayer):
                modules[module.name] = module.sub_module
        iterations = sum(r.config.num_iteration for r in self.roundings.values())
        progress = AdaRoundProgress(len(self.roundings), iterations, self.shown)
        self.calibration.deferred = _nothing
        try:
            chosen = {name: modules[name] for name in self.roundings}
            round_layers(model, chosen, self.roundings, self.replay, progress)
        finally:
            self.calibration.deferred = self.counted
            progress.close()

    def _forget(self, model: nn.Module) -> None:
        """Takes the hooks off `model`."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is self:
                    del hooks[key]


def _nothing(name: str) -> None:
    """For a run that is none of the calibration."""
