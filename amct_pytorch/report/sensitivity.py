"""The chart of sensitivity: one bar for each scored layer, the most sensitive layer first.

Cosines are all close to one, so bars of the scores would look alike. The bars show
`1 - cosine` on a log scale instead; scores of other kinds are shown as they are, on a log scale
where they span decades, and from best to worst where smaller means more sensitive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .text import is_number, number

MOST_DECADES = 8  # float32 arithmetic says nothing about smaller parts
MOST_TICKS = 5
SHORTEST = 0.25  # decades; so that the least sensitive layer has a bar
WIDE = 100.0  # largest / smallest from which on a log scale is easier to read


@dataclass(frozen=True)
class Bar:
    layer: Mapping[str, Any]
    damage: float | None  # what is plotted; None: the layer has a rank, but no finite score
    length: float  # percent of the width


@dataclass(frozen=True)
class Ranking:
    bars: tuple[Bar, ...]
    is_cosine: bool  # damage is 1 - score; otherwise it is the score
    is_log: bool
    ticks: tuple[str, ...]  # from left to right, in equal steps


def ranking_of(layers: Sequence[Mapping[str, Any]], sensitivity: str | None) -> Ranking:
    """The bars of the layers that have a rank or a score."""
    scored = [layer for layer in layers if is_number(layer.get("score")) or layer.get("rank")]
    scored.sort(key=lambda layer: layer.get("rank") or math.inf)
    scores = [layer.get("score") for layer in scored]
    known = [float(score) for score in scores if is_number(score)]
    is_cosine = "cosine" in (sensitivity or "").lower()
    damages = [1.0 - score for score in known] if is_cosine else known
    is_log = _spans_decades(damages) or (is_cosine and any(value > 0 for value in damages))
    start, end = _log_range(damages) if is_log else _linear_range(damages)
    bars = []
    for layer, score in zip(scored, scores, strict=True):
        damage = None if not is_number(score) else 1.0 - score if is_cosine else float(score)
        position = _log10(damage) if is_log else damage
        bars.append(Bar(layer, damage, _length(position, start, end)))
    return Ranking(tuple(bars), is_cosine, is_log, _ticks(start, end, is_log) if known else ())


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether larger is worse (the worst comes first) and a linear scale would hide most bars."""
    return bool(values) and min(values) > 0 and values[0] >= WIDE * values[-1]


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    """Exponents of ten around `values`, a whole number of steps between ticks apart."""
    logs = [math.log10(value) for value in values if value > 0]
    end = math.ceil(max(logs))
    decades = min(end - math.floor(min(logs) - SHORTEST), MOST_DECADES)
    step = math.ceil(decades / MOST_TICKS)
    return end - step * math.ceil(decades / step), end


def _linear_range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    best, worst = values[-1], values[0]
    return (0.0, max(values)) if worst >= best and min(values) >= 0 else (best, worst)


def _log10(value: float | None) -> float | None:
    return None if value is None else math.log10(value) if value > 0 else -math.inf


def _length(position: float | None, start: float, end: float) -> float:
    if position is None or start == end:
        return 0.0
    return 100 * min(max((position - start) / (end - start), 0.0), 1.0)


def _ticks(start: float, end: float, is_log: bool) -> tuple[str, ...]:
    if start == end:
        return (number(start),)
    steps = MOST_TICKS - 1
    if is_log:
        steps = next(n for n in range(MOST_TICKS, 0, -1) if (end - start) % n == 0)
    places = [start + (end - start) * i / steps for i in range(steps + 1)]
    return tuple(number(10.0**place if is_log else float(place), 3) for place in places)
