"""The peak of resident memory, step by step; memory is of one process, so each case has its own."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One step: its time, and the peak of memory while it ran."""

    step: str
    seconds: float
    peak_bytes: int  # above what the process had before there was a model


class Meter:
    """Reads the peak of resident memory since it was last asked to forget it (Linux)."""

    def __init__(self) -> None:
        self.base = self._status("VmRSS")
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        _let_go()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present
        started = time.perf_counter()
        yield
        seconds, peak = time.perf_counter() - started, self._status("VmHWM") - self.base
        self.steps.append(Step(name, seconds, peak))

    def now(self) -> int:
        """What the process has above its beginning."""
        _let_go()
        return self._status("VmRSS") - self.base

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def _let_go() -> None:
    """Gives free memory back, so that it does not count."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def in_process(script: str, *arguments: str) -> str:
    """The last line that `script` prints when it is called so."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]
