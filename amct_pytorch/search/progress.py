"""What a search tells while it runs: a bar and a plan on a terminal, the same in the log."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from typing_extensions import Never

logger = logging.getLogger(__name__)

BAR = "{desc}: {n_fmt} of at most {total_fmt} evaluations |{bar}| {elapsed}, {remaining} left"
OPEN_BAR = "{desc}: {n_fmt} evaluations, {elapsed}"


class Progress:
    """A bar over the evaluations; the log alone if `shown` is false or stderr is no terminal."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown and sys.stderr.isatty()
        self.at_most: int | None = None
        self._bar: tqdm[Never] | None = None
        self._done = 0

    def plan(self, at_most: int | None) -> None:
        """Begins; `at_most` is how many evaluations there can be, None: not known."""
        self.at_most = at_most
        if self.shown:
            layout = OPEN_BAR if at_most is None else BAR
            self._bar = tqdm(total=at_most, file=sys.stderr, bar_format=layout)

    def say(self, message: str) -> None:
        """A line above the bar, and in the log."""
        logger.info(message)
        if self.shown:
            tqdm.write(message, file=sys.stderr)

    def running(self, what: str) -> None:
        """What is evaluated now."""
        number = self._done + 1
        if self.at_most is not None and number > self.at_most:  # the winner was not confirmed
            self.at_most = number
            if self._bar is not None:
                self._bar.total = number
        of = "" if self.at_most is None else f" of at most {self.at_most}"
        logger.info("evaluation %d%s: %s", number, of, what)
        if self._bar is not None:
            self._bar.set_description_str(what)

    def done(self, seconds: float) -> None:
        """An evaluation has ended; `seconds` is what an evaluation takes on the average."""
        self._done += 1
        if self.at_most is not None:
            left = max(self.at_most - self._done, 0)
            text = "%d of at most %d evaluations done, at most %s left"
            logger.info(text, self._done, self.at_most, duration(left * seconds))
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(4), duration(250), duration(9000)
    ('4.0 s', '4 min 10 s', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
