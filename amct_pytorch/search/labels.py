"""The classes of the samples, as the user gives them and as a model predicts them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Labels = Sequence[int] | npt.NDArray[Any] | Tensor | str | os.PathLike[str]


def class_indices(labels: Labels) -> Tensor:
    """`labels`, or the integers of the text file `labels`, one per line, as 1-d int64.

    Raises ValueError for other than one dimension, a negative class or a line that is no integer;
    TypeError for values that are no integers; OSError for the file.

    >>> class_indices([3, 0])
    tensor([3, 0])
    """
    values = np.asarray(_plain(labels))
    if values.ndim != 1:
        raise ValueError(f"labels: expected one dimension, got the shape {values.shape}")
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {values.dtype}")
    if (values < 0).any():
        raise ValueError(f"labels: expected classes >= 0, got {values.min()}")
    return torch.from_numpy(values.astype(np.int64))


def top1(scores: Tensor) -> Tensor:
    """The class of each row of `scores` (samples, classes), on the CPU; -1 for a row with NaN.

    Further dimensions must be 1. Raises ValueError for another shape.

    >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
    tensor([1, 0])
    """
    if scores.dim() < 2 or math.prod(scores.shape[2:]) != 1 or not scores.numel():
        shape = tuple(scores.shape)
        raise ValueError(f"labels: expected a first output of (samples, classes), got {shape}")
    rows = scores.detach().reshape(scores.shape[:2])
    return rows.argmax(1).masked_fill(rows.isnan().any(1), -1).cpu()


def _plain(labels: Labels) -> Any:
    match labels:
        case Tensor():
            return labels.detach().cpu()
        case str() | os.PathLike():
            with open(labels, encoding="utf-8") as file:
                lines = file.read().rstrip().splitlines()
            return [_integer(line, f"{labels}:{number}") for number, line in enumerate(lines, 1)]
        case _:
            return labels


def _integer(text: str, where: object) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{where}: expected an integer, got {text!r}") from None
