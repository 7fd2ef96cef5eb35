"""What a row of the table of ops.py is: a case with its candidates, and the targets it has."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _timing import Candidate, measure, seconds_elsewhere
from torch import Tensor

# "ours" and what it is compared with, in the order of the columns. The peer is another
# implementation, compiled and eager are the formula in torch operations, the limit is what moves
# the same bytes and computes nothing.
OTHERS = ("peer", "compiled", "eager", "limit")
COMPILE_FROM = 0.1  # scale from which formulas are compiled: below, it takes most of the time


@dataclass(frozen=True)
class Target:
    """What a figure must reach, and what would be near the limit.

    Ratios (other/ours) are to be at least that, all else ("ms", "ns", "MB", "differing") at most.
    """

    figure: str
    must: float
    stretch: float | None = None

    def met(self, value: float, bound: float) -> bool:
        return value >= bound if self.figure in OTHERS else value <= bound


@dataclass(frozen=True)
class Row:
    """What was measured. Ratios are other/ours: above 1, ours is faster."""

    op: str
    of: str  # dtype, shape, options
    # ms, spread, ns per element, GB/s or MB, the share of the cores' time that other processes
    # took ("busy"), and ratios by OTHERS.
    figures: Mapping[str, float]
    peer: str = ""  # what stands in that column
    limit: str = ""
    targets: tuple[Target, ...] = ()
    why: str = ""  # a target is missed, as far as known

    def missed(self, bound: str) -> list[str]:
        """Each target whose `bound` (must, stretch) is not reached, in words."""
        found = []
        for target in self.targets:
            value, wanted = self.figures[target.figure], getattr(target, bound)
            if wanted is not None and not target.met(value, wanted):
                name = {"peer": self.peer, "limit": self.limit}.get(target.figure, target.figure)
                found.append(f"{name} {value:.4g}, not {wanted:.4g}")
        return found

    def verdict(self, bound: str) -> str:
        wanted = [t for t in self.targets if getattr(t, bound) is not None]
        return ("missed" if self.missed(bound) else "met") if wanted else ""

    def document(self) -> dict[str, Any]:
        verdicts = {bound: self.verdict(bound) for bound in ("must", "stretch")}
        return {**asdict(self), **verdicts}


@dataclass(frozen=True)
class Case:
    """One op on one tensor, and what it is compared with; a candidate that is None is left out."""

    op: str
    of: str
    elements: int  # 0: its time is not one of elements
    least_bytes: float  # that must be read and written, per element
    candidates: Mapping[str, Candidate | None]  # "ours", and some of OTHERS
    peer: str = ""
    limit: str = "copy_"
    targets: tuple[Target, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Run:
    """How much is measured, and how often."""

    scale: float
    repeats: int

    @property
    def whole(self) -> bool:
        return self.scale >= 1

    def size(self, elements: int) -> int:
        return max(1, int(elements * self.scale))

    def shape(self, *sizes: int) -> tuple[int, ...]:
        """The first dimension is scaled as far as it goes, then the second."""
        first, second, *others = sizes
        left = min(1.0, first * self.scale)
        return self.size(first), max(1, int(second * left)), *others

    def compiled(self, function: Callable[..., object], *arguments: object) -> Candidate | None:
        """`function` of these arguments, compiled for their shapes."""
        if self.scale < COMPILE_FROM:
            return None
        torch._dynamo.reset()  # beyond a number of shapes, what is "compiled" is eager
        compiled = torch.compile(function, dynamic=False)
        return lambda: compiled(*arguments)

    def row(self, case: Case) -> Row:
        candidates = {name: f for name, f in case.candidates.items() if f}
        for function in candidates.values():
            function()  # may compile, in other processes
        elsewhere, begin = seconds_elsewhere(), time.perf_counter()
        timings = measure(candidates, self.repeats)
        cores_seconds = (time.perf_counter() - begin) * (os.cpu_count() or 1)
        ours = timings["ours"]
        figures = {
            "ms": ours.ms,
            "spread": ours.spread,
            "busy": max(0.0, seconds_elsewhere() - elsewhere) / cores_seconds,
            **{name: timings[name].ratio for name in OTHERS if name in timings},
        }
        if case.elements:
            figures["ns"] = ours.ms * 1e6 / case.elements
            figures["GB/s"] = case.least_bytes * case.elements / ours.ms / 1e6
        targets = case.targets if self.whole else ()  # they are for these sizes
        return Row(case.op, case.of, figures, case.peer, case.limit, targets, case.why)


# ---- correctness, before anything is timed ----


def hard_values(count: int) -> Tensor:
    """`count` values in units of a scale, all of them hard on a quantizer of 8 bits.

    Ties of rounding and their neighbours, multiples of 1/37, zeros, Student's t with 3 degrees of
    freedom, and one value far from all others.
    """
    part = math.ceil(min(count, 2**20) / 8)
    ties = torch.randint(-140, 140, (part,)) + 0.5
    t3 = torch.randn(part) / (torch.randn(3, part).square().mean(0)).sqrt()
    values = torch.cat(
        [
            ties,
            torch.nextafter(ties, torch.tensor(torch.inf)),
            torch.nextafter(ties, torch.tensor(-torch.inf)),
            torch.randint(-4000, 4000, (part,)) / 37,
            torch.randn(2 * part) * 40,
            torch.zeros(part),
            t3 * 40,
        ]
    )
    values = values[torch.randperm(len(values))]
    values[0] = 1e6
    return values.repeat(math.ceil(count / len(values)))[:count].contiguous()


def require_same(name: str, ours: Tensor, expected: Tensor) -> None:
    """Stops unless the two agree in dtype, shape and every value, NaN being none of them."""
    if ours.dtype != expected.dtype or not torch.equal(ours, expected):
        raise SystemExit(f"{name}: the result is not that of the formula; nothing is timed")


def require_close(name: str, ours: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    if not bool(((ours - expected).abs() <= tolerance).all()):
        raise SystemExit(f"{name}: got {ours}, the formula gives {expected}; nothing is timed")


# ---- the table ----

HEADER = ("op", "of", "ours ms", "spread", "busy", "ns/elem", "GB/s", *OTHERS, "must", "stretch")


def cells(row: Row) -> tuple[str, ...]:
    def number(figure: str, form: str, behind: str = "") -> str:
        value = row.figures.get(figure)
        return "" if value is None else f"{value:{form}}{behind}"

    return (
        row.op,
        row.of,
        number("ms", ".3f") or number("MB", ".0f", " MB"),
        number("spread", ".0%"),
        number("busy", ".0%"),
        number("ns", ".3g"),
        number("GB/s", ".1f"),
        number("peer", ".2f", f" {row.peer}"),
        number("compiled", ".2f"),
        number("eager", ".2f"),
        number("limit", ".2f", f" {row.limit}"),
        row.verdict("must"),
        row.verdict("stretch"),
    )


def remarks(rows: Sequence[Row]) -> list[str]:
    """A line for each row that misses what it must reach."""
    return [
        f"{row.op}, {row.of}: {'; '.join(row.missed('must'))}. {row.why}".rstrip()
        for row in rows
        if row.missed("must")
    ]
