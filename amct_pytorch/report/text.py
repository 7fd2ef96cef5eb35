"""Values as people read them, for the cells of the report; what is unknown is an en dash."""

from __future__ import annotations

import json
import math
from typing import TypeGuard

import jinja2

UNKNOWN = "\N{EN DASH}"
LARGEST = 1e300  # beyond it the arithmetic of a chart would overflow


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` can be plotted: neither a bool, nor NaN, nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def number(value: object, digits: int = 4) -> str:
    """
    >>> number(1234567), number(0.0000123456)
    ('1,234,567', '1.235e-5')
    """
    if not is_number(value):
        return brief(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def exact(value: object) -> str:
    """All of `value`, for tooltips: a str as it is, anything else as JSON."""
    if value is None or isinstance(value, jinja2.Undefined):
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def brief(value: object, limit: int = 32) -> str:
    """`value` in at most `limit` characters; a metric may be any JSON value.

    >>> brief({"top1": 0.75, "top5": 0.9375}, limit=20)
    '{"top1": 0.75, "top…'
    """
    if is_number(value):
        words = number(value, 6)
    elif isinstance(value, dict | list):
        words = exact(json.loads(exact(value), parse_float=lambda digits: round(float(digits), 6)))
    else:
        words = " ".join(exact(value).split())
    return words if len(words) <= limit else f"{words[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def size(value: object, unit: str = "B") -> str:
    """
    >>> size(1300), size(7), size(2_500_000_000, "MAC")
    ('1.3 kB', '7 B', '2.5 GMAC')
    """
    if not is_number(value):
        return UNKNOWN
    power = min(int(math.log10(max(abs(value), 1))) // 3, 5)
    if power == 0:
        return f"{value:.4g} {unit}".rstrip()
    return f"{value / 1000**power:.3g} {' kMGTP'[power]}{unit}"


def seconds(value: object) -> str:
    """
    >>> seconds(0.0312), seconds(12.0), seconds(100), seconds(7384.2)
    ('0.031 s', '12.0 s', '1 min 40 s', '2 h 3 min')
    """
    if not is_number(value):
        return UNKNOWN
    if value < 60:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def percent(part: object, whole: object = 1) -> str:
    """
    >>> percent(9, 10), percent(0.12345)
    ('90 %', '12.3 %')
    """
    if not is_number(part) or not is_number(whole) or not whole:
        return UNKNOWN
    return f"{round(100 * part / whole, 1):g} %"
