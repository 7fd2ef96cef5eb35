"""The user's evaluator, called with care: counted, timed, and told by name what it does wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .evaluator import AutoCalibrationEvaluatorBase
from .judgement import Judgement, judgement

logger = logging.getLogger(__name__)

DATA_TOLERANCE = 1e-9  # relative; sums in another order differ by less


class CheckedEvaluator:
    """Calls the methods of an evaluator for the search."""

    def __init__(self, evaluator: AutoCalibrationEvaluatorBase) -> None:
        self.evaluator = evaluator
        self.name = type(evaluator).__name__
        self.evaluations = 0
        self.calibrations = 0
        self.seconds = {"evaluate": 0.0, "calibration": 0.0}
        self._data: _Data | None = None  # of the first evaluation

    def evaluate(self, model: nn.Module) -> Any:
        """The metric of `model`."""
        self.evaluations += 1
        data = _Data()
        with self._mode_kept("evaluate", model), data.watching(model):
            metric = self._timed("evaluate", self.evaluator.evaluate, model)
        if self._data is None:
            self._data = data
        elif data.differs_from(self._data):
            logger.warning(
                "%s.evaluate ran the model on other data than at its first call (%s, then %s): "
                "metrics of different data cannot be compared; evaluate on the same data each time",
                self.name,
                self._data,
                data,
            )
        return metric

    def calibration(self, model: nn.Module) -> None:
        """Runs `model` on the user's calibration data."""
        self.calibrations += 1
        with self._mode_kept("calibration", model):
            self._timed("calibration", self.evaluator.calibration, model)

    def judge(self, original: Any, metric: Any) -> Judgement:
        """Whether `metric` is good enough."""
        return judgement(self.evaluator.metric_eval(original, metric), f"{self.name}.metric_eval")

    def _timed(self, method: str, call: Callable[[nn.Module], Any], model: nn.Module) -> Any:
        start = time.perf_counter()
        try:
            return call(model)
        finally:
            self.seconds[method] += time.perf_counter() - start

    @contextmanager
    def _mode_kept(self, method: str, model: nn.Module) -> Iterator[None]:
        """Undoes, with a warning, that the user's method puts modules into training mode."""
        before = [(module, module.training) for module in model.modules()]
        try:
            yield
        finally:
            self._undo_training(method, before)

    def _undo_training(self, method: str, before: list[tuple[nn.Module, bool]]) -> None:
        changed = [module for module, training in before if module.training and not training]
        if changed:
            logger.warning(
                "%s.%s left the model in training mode (%d modules): dropout and the statistics "
                "of batches are in its result; it is put back to evaluation mode. Call "
                "model.eval() first in %s",
                self.name,
                method,
                len(changed),
                method,
            )
            for module in changed:
                module.training = False


class _Data:
    """What a model was called on, as far as a comparison needs: calls, elements, a norm."""

    def __init__(self) -> None:
        self.calls = 0
        self.elements = 0
        self.norms: list[Tensor] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        handle = model.register_forward_pre_hook(self._seen, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def differs_from(self, other: _Data) -> bool:
        if not self.calls or not other.calls:  # evaluate() calls parts of the model only
            return False
        mine, theirs = self._norm(), other._norm()
        close = abs(mine - theirs) <= DATA_TOLERANCE * max(mine, theirs)
        return self.elements != other.elements or not (close or mine != mine)

    def _seen(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls += 1
        for tensor in tree_leaves((args, kwargs)):
            if not isinstance(tensor, Tensor):
                continue
            self.elements += tensor.numel()
            values = tensor.detach().reshape(-1).to(torch.float64)
            self.norms.append(torch.linalg.vector_norm(values, 1))

    def _norm(self) -> float:
        return sum(float(norm) for norm in self.norms)

    def __str__(self) -> str:
        return f"{self.calls} calls with {self.elements} elements of norm {self._norm():.9g}"
