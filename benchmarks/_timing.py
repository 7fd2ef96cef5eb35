"""One way of timing for every benchmark: candidates take turns, and medians of rounds are compared.

    options = parser(__doc__).parse_args()
    facts = start(options)
    timings = measure({"ours": ours, "torch": theirs}, options.repeats)
    print_table(HEADER, timing_rows("some op", timings))
    if options.json:
        write(options.json, facts, [asdict(timing) for timing in timings.values()])

Neighbours on a machine slow all candidates of a round alike, so read ratios, not milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from _common import machine

Candidate = Callable[[], object]

LEAST_SECONDS = 1e-3  # of a candidate in a round: what is quicker is called several times
HEADER = ("case", "candidate", "ms", "spread", "ratio")


@dataclass(frozen=True)
class Timing:
    """What one candidate took."""

    name: str
    ms: float  # median of one call
    spread: float  # of the middle half of the rounds, in medians
    ratio: float  # of its time to the first candidate's: median of rounds; above 1 is slower


def measure(candidates: Mapping[str, Candidate], repeats: int) -> dict[str, Timing]:
    """Calls every candidate once to warm up, then in each of `repeats` rounds, to and fro."""
    for function in candidates.values():
        function()
    rounds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(repeats):
        for name in list(candidates)[:: 1 if number % 2 == 0 else -1]:
            rounds[name].append(_milliseconds(candidates[name]))
    first = next(iter(rounds.values()))
    return {
        name: Timing(
            name,
            statistics.median(times),
            _spread(times),
            statistics.median(t / f for t, f in zip(times, first, strict=True)),
        )
        for name, times in rounds.items()
    }


def _milliseconds(function: Candidate) -> float:
    """Of one call: the mean of so many that they take LEAST_SECONDS."""
    calls = 1
    while True:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        seconds = time.perf_counter() - begin
        if seconds >= LEAST_SECONDS:
            return seconds * 1e3 / calls
        calls *= 2


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def seconds_elsewhere() -> float:
    """CPU seconds that all but this process have taken since the machine started (Linux).

    Where they grow during a measurement, its figures are not to be trusted: threads of a loop that
    wait for one that does not run have been seen to take 8 ms for 0.1.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    busy = sum(fields) - fields[3] - fields[4]  # idle and waiting for a disk
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - own.user - own.system


# ---- memory ----

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt, malloc.h
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 * 1024, 65536


@contextmanager
def kept_pages() -> Iterator[None]:
    """Freed memory stays with the process (glibc), so that large results get pages in use before.

    As a rule the kernel takes the pages of a freed tensor above 32 MB and zeroes those of the
    next, which costs more than most ops. Call `fill_free_memory` inside, once per set of tensors.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, _DEFAULT_MMAPS)
        mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM)
        ctypes.CDLL(None).malloc_trim(0)


def fill_free_memory(size: int) -> None:
    """Fills `size` bytes with 0xFF, a NaN in every floating type, and frees them.

    Inside `kept_pages` the next tensors lie there: they cost no fresh pages, and an element that an
    op forgets to write is found.
    """
    torch.empty(size, dtype=torch.uint8).fill_(0xFF)


# ---- what goes in and out ----


def parser(doc: str) -> argparse.ArgumentParser:
    """The options of every benchmark; `doc` begins with what it does."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--json", type=Path, help="file to write the results to")
    options.add_argument("--repeats", type=int, default=9, help="rounds (default 9)")
    options.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    return options


def start(options: argparse.Namespace) -> dict[str, str | int]:
    """Sets threads and seed, prints the machine and returns what it is."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts = machine() | _gpu()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    return facts


def _gpu() -> dict[str, str]:
    """The GPU and its driver, where torch can use one."""
    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver}


def timing_rows(case: str, timings: Mapping[str, Timing]) -> list[tuple[str, ...]]:
    """The rows of a case under HEADER."""
    return [
        (case, t.name, f"{t.ms:.3f}", f"{t.spread:.0%}", f"{t.ratio:.2f}x")
        for t in timings.values()
    ]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> None:
    """Columns as wide as they must be; the first of them, of words, to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = zip(row, widths, strict=True)
        aligned = [t.ljust(w) if i < words else t.rjust(w) for i, (t, w) in enumerate(cells)]
        print("  ".join(aligned).rstrip())


def write(path: Path, facts: Mapping[str, Any], timings: Sequence[Mapping[str, Any]]) -> None:
    """A results file: results/README.md says what it holds."""
    document = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "machine": dict(facts),
        "timings": list(timings),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the sources; with "-dirty" where they differ from it; None without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or None
