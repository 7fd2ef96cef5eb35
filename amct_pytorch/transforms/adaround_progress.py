"""The bar of AdaRound: one over all layers, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from typing_extensions import Never


class AdaRoundProgress:
    """Counts iterations; shows nothing if `shown` is false or stderr is no terminal."""

    def __init__(self, layers: int, iterations: int, shown: bool) -> None:
        self._layers = layers
        self._current, self._done = "", 0
        self._bar: tqdm[Never] | None = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=iterations, file=sys.stderr, unit="it")

    @contextmanager
    def layer(self, name: str, iterations: int) -> Iterator[None]:
        """What is reported meanwhile belongs to the layer `name`."""
        self._done += 1
        self._current = f"AdaRound {name} {self._done}/{self._layers}"
        if self._bar is not None:
            self._bar.set_description_str(self._current)
        yield

    def report(self, iterations: int, loss: float) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._current}, loss {loss:.3g}", refresh=False)
            self._bar.update(iterations)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
