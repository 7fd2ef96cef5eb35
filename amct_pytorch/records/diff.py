"""What differs between two records, field by field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..float32 import shortest

Scalar = float | int | bool | str
Value = Scalar | tuple[float, ...] | tuple[int, ...] | None
Fields = Mapping[str, Value]  # what a layer has, by the field's name


@dataclass(frozen=True)
class Difference:
    """One field, or with `field` empty a whole layer, that two records do not have alike."""

    layer: str  # empty for what is of no layer
    field: str
    first: Value  # None: absent
    second: Value
    largest: float = math.inf  # the relative difference; infinite from 0 and for what is no number
    # Of a list, where both have one of the same length:
    differing: int = 0  # how many entries differ
    index: int = 0  # the entry that differs most, by `largest`

    def __str__(self) -> str:
        if not self.field:
            return f"{self.layer}: only in the {'second' if self.first is None else 'first'}"
        place = ".".join(filter(None, (self.layer, self.field)))
        first, second = self.first, self.second
        if self.differing and isinstance(first, tuple) and isinstance(second, tuple):
            place += f": {self.differing} of {len(first)} differ, most at [{self.index}]"
            first, second = first[self.index], second[self.index]
        change = ""
        if math.isfinite(self.largest) and isinstance(first, float) and isinstance(second, float):
            change = f" ({'+' if second >= first else '-'}{100 * self.largest:.3g} %)"
        return f"{place}: {_shown(first)} -> {_shown(second)}{change}"


@dataclass(frozen=True)
class RecordsDiff:
    """All differences of two records, layer by layer; false if there is none."""

    differences: tuple[Difference, ...]

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __str__(self) -> str:
        return "\n".join(map(str, self.differences)) or "no difference"


def compare(
    first: Mapping[str, Fields], second: Mapping[str, Fields], rtol: float
) -> Iterator[Difference]:
    """The differences of two records given as fields of layers; "" has what is of no layer.

    Floats are alike if they differ by at most `rtol` of the larger of both, or are both NaN.

    >>> print(*compare({"conv": {"scale_d": 0.024}}, {"conv": {"scale_d": 0.025}}, rtol=0.01))
    conv.scale_d: 0.024 -> 0.025 (+4.17 %)
    """
    for layer in {**first, **second}:
        if layer in first and layer in second:
            ours, theirs = first[layer], second[layer]
            for field in {**ours, **theirs}:
                yield from _compare(layer, field, ours.get(field), theirs.get(field), rtol)
        else:
            here = layer in first
            yield Difference(layer, "", "present" if here else None, None if here else "present")


def _compare(
    layer: str, field: str, first: Value, second: Value, rtol: float
) -> Iterator[Difference]:
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        changes = {
            index: _relative(a, b)
            for index, (a, b) in enumerate(zip(first, second, strict=True))
            if not _alike(a, b, rtol)
        }
        if changes:
            most = max(changes, key=lambda index: changes[index])
            yield Difference(layer, field, first, second, changes[most], len(changes), most)
    elif not _alike(first, second, rtol):
        yield Difference(layer, field, first, second, _relative(first, second))


def _alike(first: Value, second: Value, rtol: float) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        if math.isnan(first) or math.isnan(second):
            return math.isnan(first) and math.isnan(second)
        return math.isclose(first, second, rel_tol=rtol)
    return first == second


def _relative(first: Value, second: Value) -> float:
    """How much `second` differs from `first`, relative to it."""
    if not isinstance(first, float | int) or not isinstance(second, float | int):
        return math.inf
    change = abs(second - first) / abs(first) if first else math.inf
    return math.inf if math.isnan(change) else change


def _shown(value: Value) -> str:
    if value is None:
        return "absent"
    if isinstance(value, float):
        return str(shortest([value])[0])
    if isinstance(value, tuple):
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    if isinstance(value, str) and "\n" in value:
        return f"{len(value.splitlines())} lines"
    return str(value).lower() if isinstance(value, bool) else str(value)
