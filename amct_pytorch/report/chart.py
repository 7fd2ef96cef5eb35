"""The chart of the search: the metric of every quantized model that was evaluated, in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .text import is_number

HEIGHT = 240  # CSS pixels of the plot; its width is that of the page, so x is in percent
MARGIN = 0.12  # of the range of values, above and below them
TICKS = 5  # at most about so many


@dataclass(frozen=True)
class Point:
    trial: Mapping[str, Any]
    x: float  # percent; 0 is the float model
    y: float  # pixels from the top
    value: float | None  # None: not finite; the point stands at the bottom


@dataclass(frozen=True)
class Progress:
    quantity: str  # "metric" or "loss"
    points: tuple[Point, ...]
    level: float | None  # value of the float model
    level_y: float | None
    ticks: tuple[tuple[float, str], ...]  # y, label
    height: int = HEIGHT


def progress_of(trials: Sequence[Mapping[str, Any]], original: object) -> Progress | None:
    """The metrics if all of them are numbers, otherwise the losses; None without any number."""
    metrics = [trial.get("metric") for trial in trials]
    plain = all(metric is None or is_number(metric) for metric in [original, *metrics])
    if plain and any(is_number(metric) for metric in metrics):
        return _plot("metric", trials, metrics, float(original) if is_number(original) else None)
    losses = [trial.get("loss") for trial in trials]
    return _plot("loss", trials, losses, 0.0) if any(map(is_number, losses)) else None


def _plot(
    quantity: str,
    trials: Sequence[Mapping[str, Any]],
    numbers: Sequence[object],
    level: float | None,
) -> Progress:
    values = [float(value) if is_number(value) else None for value in numbers]
    known = [value for value in [level, *values] if value is not None]
    margin = MARGIN * (max(known) - min(known)) or MARGIN * abs(known[0]) or 1.0
    low, high = min(known) - margin, max(known) + margin

    def y_of(value: float | None) -> float:
        return HEIGHT if value is None else HEIGHT * (high - value) / (high - low)

    points = [
        Point(trial, 100 * i / len(trials), y_of(value), value)
        for i, (trial, value) in enumerate(zip(trials, values, strict=True), 1)
    ]
    ticks = [(y_of(value), f"{value:.10g}") for value in _round_numbers(low, high)]
    level_y = None if level is None else y_of(level)
    return Progress(quantity, tuple(points), level, level_y, tuple(ticks))


def _round_numbers(low: float, high: float) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
