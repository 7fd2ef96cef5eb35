"""The documented import path of what users subclass for automatic calibration."""

from ...search.base import AccuracyBasedAutoCalibrationBase
from ...search.evaluator import AutoCalibrationEvaluatorBase
from ...search.result import AutoCalibrationResult, Trial
from ...search.sensitivity import (
    CosineSimilaritySensitivity,
    MseSensitivity,
    SensitivityBase,
    SqnrSensitivity,
)
from ...search.strategy import (
    AutoCalibrationStrategyBase,
    BinarySearchStrategy,
    GreedyStrategy,
)

__all__ = [
    "AccuracyBasedAutoCalibrationBase",
    "AutoCalibrationEvaluatorBase",
    "AutoCalibrationResult",
    "AutoCalibrationStrategyBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "GreedyStrategy",
    "MseSensitivity",
    "SensitivityBase",
    "SqnrSensitivity",
    "Trial",
]
