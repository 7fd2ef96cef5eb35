"""The closest of the names that would have been right, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean "x"?` for the closest of `names`, or nothing if none is close.

    >>> did_you_mean("conv11", ["conv1", "fc"])
    '; did you mean "conv1"?'
    >>> did_you_mean("pool", ["conv1", "fc"])
    ''
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
