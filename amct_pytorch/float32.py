"""Shortest decimal text of float32 values, as protobuf prints them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shortest(values: Sequence[float]) -> list[float]:
    """The double of fewest digits (6 to 9) that rounds to each of `values` taken as float32.

    Formatting a result with `str` gives the text that protobuf prints for the float32 value.

    >>> shortest([0.10000000149011612, 1 / 3])
    [0.1, 0.33333334]
    """
    exact = np.asarray(values, np.float32)
    result = exact.astype(np.float64)
    pending = np.arange(exact.size)
    for digits in range(6, 10):
        style = f".{digits}g"
        result[pending] = [float(format(x, style)) for x in exact[pending].tolist()]
        # A NaN is never equal to itself: it stays pending and stays a NaN.
        pending = pending[result[pending].astype(np.float32) != exact[pending]]
    decimals: list[float] = result.tolist()
    return decimals
