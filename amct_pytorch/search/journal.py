"""The journal of a search: one synced line per step, so that a killed run can go on.

The first line holds the fingerprint of what the results depend on. The lines after it are the
steps in order, each with a checksum: a line that was cut off by a kill or damaged is dropped with
what follows. A journal with another fingerprint is not used, and the log says what changed.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..files import FILE_MODE, write_files

logger = logging.getLogger(__name__)

FORMAT = 1
CHECKSUM = "crc32"  # key, of the JSON of all that stands before it


class Journal:
    """The steps of one search, on disk from the first one on."""

    def __init__(self, path: str, fingerprint: Mapping[str, Any], resume: bool = True) -> None:
        self.path = path
        self._fingerprint = dict(fingerprint)
        self._steps: list[dict[str, Any]] = self._read() if resume else []
        self._started = False

    def find(self, step: str, **attributes: Any) -> dict[str, Any] | None:
        """The latest entry of this kind of step with these attributes."""
        wanted = {"step": step, **attributes}
        found = (e for e in reversed(self._steps) if {k: e.get(k) for k in wanted} == wanted)
        return next(found, None)

    def append(self, step: str, **content: Any) -> None:
        """Adds an entry; when this returns it is on disk."""
        entry = {"step": step, **content}
        self._steps.append(entry)
        if not self._started:
            # Whole and at once: what was there may be of another run, or end in half a line.
            header = {"format": FORMAT, "fingerprint": self._fingerprint}
            lines = [json.dumps(header) + "\n", *map(_line, self._steps)]
            write_files({self.path: "".join(lines)}, warn_replaced=False)
            self._started = True
            return
        with open(self.path, "a", encoding="utf-8", opener=_open_private) as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The search has ended: nothing is left to resume."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        self._started = False

    def _read(self) -> list[dict[str, Any]]:
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return []
        header = _parsed(lines[0])
        if header.get("format") != FORMAT or not isinstance(header.get("fingerprint"), dict):
            logger.warning("%s is not a journal of this version; the search starts anew", self.path)
            return []
        if header["fingerprint"] != self._fingerprint:
            logger.warning(
                "%s belongs to another search and is not used; changed: %s",
                self.path,
                "; ".join(_changes(header["fingerprint"], self._fingerprint)),
            )
            return []
        steps: list[dict[str, Any]] = []
        for number, line in enumerate(lines[1:], 2):
            entry = _parsed(line)
            if entry.pop(CHECKSUM, None) != _checksum(entry):
                if any(lines[number - 1 :]):
                    text = "%s:%d: the line is damaged; what follows is done again"
                    logger.warning(text, self.path, number)
                break
            steps.append(entry)
        return steps


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps({**entry, CHECKSUM: _checksum(entry)}) + "\n"


def _parsed(line: str) -> dict[str, Any]:
    """The object in a line; an empty one if there is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _checksum(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key} (was {was}, is {now})"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)
