"""What stands for a layer while activations are observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrators import HFMG, IFMR
from ..config.kv_layer import HfmgParams, KVParams
from ..config.layer import ActivationConfig, HfmgConfig
from ..ops._checks import check_dtype
from .base import AmctLayer

Calibrator = IFMR | HFMG


@dataclass
class Calibration:
    """Progress of one model's calibration, shared by its layers."""

    batch_num: int
    seen: dict[str, int] = field(default_factory=dict)
    factors: dict[str, tuple[float, int]] = field(default_factory=dict)
    hidden: dict[str, tuple[float, int]] = field(default_factory=dict)  # of LSTM and GRU
    left_float: dict[str, str] = field(default_factory=dict)  # layer -> reason
    observed: Callable[[], None] | None = None  # called when a layer has seen a batch
    # Called with the layer in the place of its calibrator, which will see the batch later.
    deferred: Callable[[str], None] | None = None
    float_weights: dict[str, Tensor] = field(default_factory=dict)  # whose rounding is learnt

    @property
    def unfinished(self) -> dict[str, tuple[int, int]]:
        """Batches seen and needed of the layers that have not seen enough."""
        return {
            name: (count, self.batch_num)
            for name, count in self.seen.items()
            if count < self.batch_num
        }


class CalibratedLayer(AmctLayer):
    """Runs the layer and shows its input to a calibrator for the first `batch_num` calls.

    The output is the layer's own: nothing is quantized but the weights that `sub_module` already
    carries. Once enough has been seen the factors are reported and the calibrator's state is let
    go.
    """

    def __init__(
        self,
        name: str,
        sub_module: nn.Module,
        calibrator: Calibrator,
        calibration: Calibration,
    ) -> None:
        super().__init__(name)
        self.sub_module = sub_module
        self.calibrator: Calibrator | None = calibrator
        self.calibration = calibration
        calibration.seen[name] = 0

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = self.first_input(args, kwargs)
        check_activation(self.name, x)
        output = self.sub_module(*args, **kwargs)
        if self.calibration.deferred is not None:
            self.calibration.deferred(self.name)
        elif self.calibrator is not None:
            self._observe(x)
        return output

    def _observe(self, x: Tensor) -> None:
        assert self.calibrator is not None
        calibration = self.calibration
        try:
            self.calibrator.update(x)
            done = calibration.seen[self.name] + 1 >= calibration.batch_num
            factors = self.calibrator.compute() if done else None
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.name}: its input cannot be calibrated: {error} (batch "
                f"{calibration.seen[self.name] + 1} of {calibration.batch_num})"
            ) from error
        calibration.seen[self.name] += 1
        if factors is not None:
            self._finish(x, *factors)
        if calibration.observed is not None:
            calibration.observed()

    def _finish(self, x: Tensor, scale: Tensor, offset: Tensor) -> None:
        self.calibrator = None
        factors = float(scale), int(offset)
        reason = why_too_small("input", x, factors[0])
        if reason:
            self.calibration.left_float[self.name] = reason
        else:
            self.calibration.factors[self.name] = factors


def new_calibrator(
    settings: ActivationConfig | KVParams, num_bits: int, asymmetric: bool, axis: int | None = None
) -> Calibrator:
    """The calibrator that the configuration of an activation or of a KV cache asks for."""
    if isinstance(settings, HfmgConfig | HfmgParams):
        return HFMG(num_bits, asymmetric, settings.num_of_bins, axis)
    return IFMR(
        num_bits,
        asymmetric,
        settings.max_percentile,
        settings.min_percentile,
        settings.search_range,
        settings.search_step,
        axis,
    )


def check_activation(name: str, x: Tensor) -> None:
    """Raises TypeError for an activation of a type that cannot be calibrated."""
    check_dtype(f"{name}: activation", x)


def why_too_small(what: str, x: Tensor, scale: float) -> str:
    """Why `scale` cannot stand for the range of `x`, or an empty text."""
    # Ops give scale 1 to ranges under the floor; that must not erase a signal silently.
    if scale != 1.0 or not x.numel():
        return ""
    largest = max(abs(float(end)) for end in x.aminmax())
    if not 0.0 < largest < 0.5:
        return ""
    return (
        f"its {what} range is real but tiny (largest magnitude {largest:.3g}), "
        "below what a scale can express"
    )
