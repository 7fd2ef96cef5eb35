"""What the user supplies to automatic calibration: how to calibrate, evaluate and judge a model."""

from __future__ import annotations

from typing import Any

from torch import nn


class AutoCalibrationEvaluatorBase:
    """Subclass it and implement the three methods.

    Example::

        class Evaluator(AutoCalibrationEvaluatorBase):
            def calibration(self, model):
                for images in calibration_batches:
                    model(images)

            def evaluate(self, model):
                return top1(model, test_images)

            def metric_eval(self, original_metric, new_metric):
                loss = original_metric - new_metric
                return loss < 0.005, loss
    """

    version: object = None
    """Change it when `evaluate` or its data change: interrupted searches then start afresh."""

    def calibration(self, model: nn.Module) -> Any:
        """Runs `model` on at least `batch_num` batches (of the configuration); more are ignored."""
        raise NotImplementedError(f"{type(self).__name__}.calibration(model) is not implemented")

    def evaluate(self, model: nn.Module) -> Any:
        """A metric of `model`: any object, which is only handed to `metric_eval`.

        The first model is the user's own, later ones are its quantized simulation. The same model
        must get the same metric at every call.
        """
        raise NotImplementedError(f"{type(self).__name__}.evaluate(model) is not implemented")

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float | None]:
        """Whether `new_metric` is good enough beside the float model's, and the loss of accuracy.

        Must be satisfied with `metric_eval(original, original)`.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.metric_eval(original_metric, new_metric) is not implemented"
        )
