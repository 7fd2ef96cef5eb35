"""What `metric_eval` and `compare` returned, as plain Python values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

LONGEST = 200  # characters of a value that is shown as text


class Judgement(NamedTuple):
    """Whether a metric satisfies, and how much accuracy was lost (None: not told)."""

    satisfied: bool
    loss: float | None


def judgement(value: object, source: str) -> Judgement:
    """The pair that `source` returned; TypeError with what came back if it is none.

    >>> judgement((np.bool_(True), torch.tensor(0.25)), "metric_eval")
    Judgement(satisfied=True, loss=0.25)
    >>> judgement(True, "metric_eval")
    Traceback (most recent call last):
    TypeError: metric_eval: expected a pair (satisfied: bool, loss: float or None), got True
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        satisfied, loss = plain(value[0]), plain(value[1])
        if isinstance(satisfied, bool) and (loss is None or is_number(loss)):
            return Judgement(satisfied, None if loss is None else float(loss))
    raise TypeError(
        f"{source}: expected a pair (satisfied: bool, loss: float or None), got {shown(value)}"
    )


def shown(value: object) -> str:
    """`value` in one line of bounded length; a metric may be whole tensors."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(value: Any) -> Any:
    """`value` as a Python scalar where it is a NumPy or torch scalar or has one element."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().item() if value.numel() == 1 else value
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.size == 1 else value
    return value


def is_number(value: object) -> bool:
    """Whether `value` is a Python number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> Any:
    """`value` for a JSON file: None where it is NaN or infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
