"""The package's log: standard `logging` under the name `amct_pytorch`, silent until asked."""

from __future__ import annotations

import logging
import os
from io import TextIOWrapper
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
LOG_FILE = os.path.join("amct_log", "amct_pytorch.log")
_FORMAT = "%(asctime)s - %(levelname)s - [AMCT]:[%(name)s]: %(message)s"


class _Console(logging.StreamHandler[TextIO]):
    """The handler for stderr that `set_logging_level` puts up."""


class _OnDemandFile(logging.FileHandler):
    """A log file whose folder appears with the first line."""

    def _open(self) -> TextIOWrapper:
        os.makedirs(os.path.dirname(self.baseFilename), mode=0o750, exist_ok=True)
        return super()._open()


def set_logging_level(print_level: str = "info", save_level: str = "info") -> None:
    """Sends the package's messages to stderr and to `amct_log/amct_pytorch.log`.

    Args:
        print_level: least severity shown on stderr: debug, info, warning or error (any case).
        save_level: least severity written to the file, which appears in the working directory
            of the call with the first message.

    Raises TypeError for a level that is no str and ValueError for an unknown one. Without a call
    of this function messages go where the application's own `logging` sets them.

    >>> set_logging_level(print_level="warning", save_level="error")
    """
    shown = _level("print_level", print_level)
    saved = _level("save_level", save_level)
    logger = logging.getLogger("amct_pytorch")
    for old in [h for h in logger.handlers if isinstance(h, _Console | _OnDemandFile)]:
        logger.removeHandler(old)
        old.close()
    console: logging.Handler = _Console()
    file: logging.Handler = _OnDemandFile(os.path.abspath(LOG_FILE), delay=True, encoding="utf-8")
    for handler, level in ((console, shown), (file, saved)):
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
    logger.setLevel(min(shown, saved))


def _level(argument: str, level: object) -> int:
    if not isinstance(level, str):
        raise TypeError(f"{argument}: expected a str, got {type(level).__name__}")
    if level.lower() not in LEVELS:
        raise ValueError(f"{argument}: expected one of {', '.join(LEVELS)}, got {level!r}")
    return int(getattr(logging, level.upper()))
