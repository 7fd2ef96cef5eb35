"""What automatic calibration found, and each step on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..export.compare import Comparison


@dataclass(frozen=True)
class Trial:
    """One quantized model that was evaluated."""

    config: dict[str, bool]  # layer -> True: quantized, False: left float
    metric: Any  # what evaluate() returned
    satisfied: bool
    loss: float | None
    seconds: float  # of evaluate(), and of calibration where there was one
    calibrated: bool  # whether calibration ran with exactly these layers quantized
    resumed: bool = False  # taken from the journal of an interrupted run

    @property
    def quantized(self) -> list[str]:
        """The layers that were quantized."""
        return [name for name, enabled in self.config.items() if enabled]

    @property
    def rolled_back(self) -> list[str]:
        """The layers that were left float."""
        return [name for name, enabled in self.config.items() if not enabled]


@dataclass(frozen=True)
class AutoCalibrationResult:
    """The outcome of `accuracy_based_auto_calibration`.

    `satisfied` is False both when nothing satisfies (then there is no model in `files`) and when
    a budget ended the search early (`stopped_by`; the best model so far is in `files`).
    """

    satisfied: bool
    original_metric: Any
    final_metric: Any  # of the model in `files`; None if there is none
    loss: float | None
    quantized_layers: list[str]
    rolled_back_layers: list[str]
    left_float: dict[str, str]  # layers that could not be quantized, with the reason
    trials: list[Trial]
    ranking: list[tuple[str, float]]  # (layer, score), the most sensitive layer first
    files: dict[str, str]
    calibrations: int  # calls of calibration() in this run
    evaluations: int  # calls of evaluate() in this run
    stopped_by: str | None = None  # max_evaluations or max_seconds
    seconds: dict[str, float] = field(default_factory=dict)  # total, evaluate, calibration, own
    fidelity: Comparison | None = None  # the simulation beside ONNX Runtime

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""
        quantized = len(self.quantized_layers)
        layers = quantized + len(self.rolled_back_layers) + len(self.left_float)
        if self.satisfied:
            return f"{quantized} of {layers} layers are quantized and the metric satisfies"
        if self.stopped_by:
            return (
                f"{self.stopped_by} ended the search before anything satisfied; the best model so "
                f"far has {quantized} of {layers} layers quantized"
            )
        return "no model with a quantized layer satisfies; none was written"
