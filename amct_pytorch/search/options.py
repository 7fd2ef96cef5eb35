"""How to search: checked before any work is done."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, TypeVar

from ..suggest import did_you_mean
from .evaluator import AutoCalibrationEvaluatorBase
from .sensitivity import SENSITIVITIES, SensitivityBase
from .strategy import STRATEGIES, AutoCalibrationStrategyBase

RECALIBRATE = ("never", "final", "always")
LEAST_EVALUATIONS = 2  # the float model and the fully quantized one

T = TypeVar("T")


@dataclass(frozen=True)
class SearchOptions:
    """Bounds and habits of a search.

    recalibrate: "final" calibrates once more for the winner, "always" for every trial, "never"
    keeps the factors of the first calibration.
    """

    max_evaluations: int | None = None
    max_seconds: float | None = None
    resume: bool = True
    progress: bool = True
    recalibrate: str = "final"

    def __post_init__(self) -> None:
        _check("max_evaluations", self.max_evaluations, (int,), optional=True)
        _check("max_seconds", self.max_seconds, (int, float), optional=True)
        _check("resume", self.resume, (bool,))
        _check("progress", self.progress, (bool,))
        _check("recalibrate", self.recalibrate, (str,))
        if self.max_evaluations is not None and self.max_evaluations < LEAST_EVALUATIONS:
            raise ValueError(
                f"max_evaluations: expected at least {LEAST_EVALUATIONS} (the float model and the "
                f"quantized one), got {self.max_evaluations}"
            )
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds: expected a number above 0, got {self.max_seconds}")
        if self.recalibrate not in RECALIBRATE:
            hint = did_you_mean(self.recalibrate, RECALIBRATE)
            raise ValueError(
                f"recalibrate: expected one of {', '.join(RECALIBRATE)}, "
                f"got {self.recalibrate!r}{hint}"
            )


def chosen_strategy(strategy: object) -> AutoCalibrationStrategyBase:
    """The strategy given by name or as an instance; RuntimeError for anything else."""
    return _chosen("strategy", strategy, STRATEGIES, AutoCalibrationStrategyBase)


def chosen_sensitivity(sensitivity: object) -> SensitivityBase:
    """The sensitivity given by name or as an instance; RuntimeError for anything else."""
    return _chosen("sensitivity", sensitivity, SENSITIVITIES, SensitivityBase)


def check_evaluator(evaluator: object) -> AutoCalibrationEvaluatorBase:
    """`evaluator`, if it is an instance of a subclass of the base; else RuntimeError."""
    if not isinstance(evaluator, AutoCalibrationEvaluatorBase):
        raise RuntimeError(
            _not_inherited("model_evaluator", evaluator, AutoCalibrationEvaluatorBase)
        )
    return evaluator


def _chosen(argument: str, value: object, names: dict[str, type[T]], base: type[T]) -> T:
    if isinstance(value, str):
        if value not in names:
            hint = did_you_mean(value, names)
            raise RuntimeError(
                f"{argument}: expected one of {', '.join(names)}, or an instance of a subclass of "
                f"{base.__name__}, got {value!r}{hint}"
            )
        return names[value]()
    if not isinstance(value, base):
        raise RuntimeError(_not_inherited(argument, value, base))
    return value


def _not_inherited(argument: str, value: object, base: type) -> str:
    if inspect.isclass(value):
        return f"{argument}: expected an instance, got the class {value.__name__}; call it"
    return (
        f"{argument}: expected an instance of a subclass of {base.__name__} (from "
        f"amct_pytorch.common.auto_calibration), got {type(value).__name__}"
    )


def _check(name: str, value: Any, types: tuple[type, ...], optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join([*(t.__name__ for t in types), *(["None"] if optional else [])])
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
