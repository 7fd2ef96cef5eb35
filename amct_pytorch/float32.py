"""Shortest decimal text of float32 values, as protobuf prints them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_POWERS = np.array([float(f"1e{places}") for places in range(23)])  # of ten, all exact


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
        result[pending] = _rounded(exact[pending].astype(np.float64), digits)
        # A NaN is never equal to itself: it stays pending and stays a NaN.
        pending = pending[result[pending].astype(np.float32) != exact[pending]]
    decimals: list[float] = result.tolist()
    return decimals


def _rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """The doubles next to the decimals with so many digits that are next to `values`."""
    with np.errstate(all="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
        sure = (places >= 0) & (places < len(_POWERS))
        power = _POWERS[np.where(sure, places, 0).astype(np.intp)]
        shifted = values * power
        whole = np.rint(shifted)
        result: NDArray[np.float64] = (
            whole / power
        )  # of two exact numbers, so the double that float() reads
        # A product next to a tie may be on the wrong side of it, and one next to a power of ten
        # may have a digit too many or too few.
        sure &= (np.abs(shifted - whole) < 0.499) & (np.abs(whole) < 10**digits)
        sure &= np.abs(whole) > 10 ** (digits - 1)
    style = f".{digits}g"
    result[~sure] = [float(format(x, style)) for x in values[~sure].tolist()]
    return result
