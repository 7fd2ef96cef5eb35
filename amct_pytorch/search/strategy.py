"""Which layers to put back to float next: the strategies of automatic calibration.

A strategy sees one score per layer, low where quantization harms most, and then the judgement of
each configuration it asked for. Both strategies here put back a prefix of the layers, the most
sensitive ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class AutoCalibrationStrategyBase:
    """Subclass it and implement both methods to search in another way."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self.set_flag = True
        self.last_acc_result: dict[str, Any] = {}

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        """Called once, before a search.

        `ranking_info` has the score of every quantized layer, in the order of the configuration;
        a low score means that the layer suffers from quantization, whatever the sensitivity.
        """
        raise NotImplementedError(f"{type(self).__name__}.initialize is not implemented")

    def update_quant_config(self, metric_eval: tuple[bool, float | None]) -> dict[str, Any]:
        """Called with (satisfied, loss) of the configuration last asked for.

        The first call gets the judgement of full quantization. Returns `{"stop_flag": bool,
        "roll_back_config": {layer: True to quantize it, False to leave it float}}`; a layer that
        is not named is quantized. With `stop_flag` the configuration is the answer.
        """
        raise NotImplementedError(f"{type(self).__name__}.update_quant_config is not implemented")

    def evaluations_at_most(self, layers: int) -> int | None:
        """How many configurations of `layers` layers it may ask for; None: unknown."""
        return None


class _PrefixStrategy(AutoCalibrationStrategyBase):
    """Puts back the layers with the lowest scores; how many is the subclass' matter."""

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        self.result = {}
        # Stable: layers with equal scores stay in the order of the configuration.
        self._order = sorted(ranking_info, key=lambda name: _sortable(ranking_info[name]))

    def _answer(self, length: int, stop: bool) -> dict[str, Any]:
        config = {name: index >= length for index, name in enumerate(self._order)}
        self.result = {"stop_flag": stop, "roll_back_config": config}
        return self.result


class BinarySearchStrategy(_PrefixStrategy):
    """Finds the shortest prefix by bisection, as if a longer one were never worse.

    Of the lengths 1 to N it evaluates at most ceil(log2 N); N itself, everything float, is the
    answer without an evaluation when nothing shorter satisfies.

    >>> search = BinarySearchStrategy()
    >>> search.initialize({"conv1": 0.97, "conv2": 0.99, "fc": 0.98})
    >>> search.update_quant_config((False, 0.1))["roll_back_config"]
    {'conv1': False, 'fc': False, 'conv2': True}
    >>> search.update_quant_config((True, 0.0))["roll_back_config"]
    {'conv1': False, 'fc': True, 'conv2': True}
    >>> search.update_quant_config((False, 0.1))
    {'stop_flag': True, 'roll_back_config': {'conv1': False, 'fc': False, 'conv2': True}}
    """

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        super().initialize(ranking_info)
        # Every length up to `_bad` is too short; `_good` is long enough (N without a proof).
        self._bad, self._good, self._length = -1, len(self._order), 0

    def update_quant_config(self, metric_eval: tuple[bool, float | None]) -> dict[str, Any]:
        if metric_eval[0]:
            self._good = self._length
        else:
            self._bad = self._length
        if self._good - self._bad <= 1:
            return self._answer(self._good, stop=True)
        self._length = (self._bad + self._good + 1) // 2
        return self._answer(self._length, stop=False)

    def evaluations_at_most(self, layers: int) -> int:
        return math.ceil(math.log2(layers)) if layers > 1 else 0


class GreedyStrategy(_PrefixStrategy):
    """Puts back the most sensitive layer, then the next one, until the metric satisfies.

    >>> search = GreedyStrategy()
    >>> search.initialize({"conv1": 0.97, "fc": 0.98})
    >>> search.update_quant_config((False, 0.1))
    {'stop_flag': False, 'roll_back_config': {'conv1': False, 'fc': True}}
    """

    def initialize(self, ranking_info: Mapping[str, float]) -> None:
        super().initialize(ranking_info)
        self._length = 0

    def update_quant_config(self, metric_eval: tuple[bool, float | None]) -> dict[str, Any]:
        if metric_eval[0]:
            return self._answer(self._length, stop=True)
        self._length += 1
        return self._answer(self._length, stop=self._length == len(self._order))

    def evaluations_at_most(self, layers: int) -> int:
        return max(layers - 1, 0)


STRATEGIES: dict[str, type[AutoCalibrationStrategyBase]] = {
    "BinarySearch": BinarySearchStrategy,
    "Greedy": GreedyStrategy,
}


def _sortable(score: float) -> float:
    return -math.inf if math.isnan(score) else score
