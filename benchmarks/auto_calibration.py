"""Times automatic calibration: what a search takes beside the user's own functions, and for what.

    python benchmarks/auto_calibration.py [--json FILE] [--model cnn resnet18] [--quick]

Two models with random weights, each searched twice: full quantization satisfies at once, and a
full binary search. The outcome is checked before anything is timed. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import cnn, machine, resnet18, settle
from torch import Tensor, nn

import amct_pytorch as amct
from amct_pytorch import auto_calibration as verb
from amct_pytorch.common.auto_calibration import AutoCalibrationEvaluatorBase
from amct_pytorch.layers.calibrate import CalibratedLayer
from amct_pytorch.search import base, model_search
from amct_pytorch.search.result import AutoCalibrationResult

# Layers that must be float -> evaluations beside those of the float and the fully quantized model.
CASES = {"nothing": 0, "search": 1}  # 1: bisection halves all the way down to one layer

# Column -> the functions it stands for. Nested ones count for the inner column only.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "capture": [(verb, "copy_model"), (verb, "digest"), (verb, "prepare")],
    "factors": [(model_search.ModelSearch, "calibrate")],
    "simulate": [(model_search.ModelSearch, "use")],
    "scores": [(model_search.ModelSearch, "get_ranking_info")],
    "export": [(verb, "_models")],
    "compare": [(verb, "_compare")],
    "report": [(verb, "describe_graph"), (verb, "describe_run"), (verb, "render")],
    "files": [
        (verb, "write_files"),
        (base.Journal, "append"),
        (base.Trials, "write_history"),
    ],
}
USER = ("evaluate", "calibration")

# Of the largest output. Quantized layers are exact in any order of additions; float ones are not,
# and what differs there by 1e-6 may be a whole code in the layer behind.
MOST_UNLIKE = 0.02


@dataclass(frozen=True)
class Size:
    """How much a model computes."""

    image: int
    width: int  # channels of its first convolutions
    batch: int
    evaluated: int  # batches
    calibrated: int = 2


SIZES = {"cnn": Size(32, 32, 64, evaluated=4), "resnet18": Size(224, 64, 8, evaluated=2)}
QUICK = {"cnn": Size(8, 4, 4, evaluated=2), "resnet18": Size(32, 4, 2, evaluated=2)}


# ---- the models ----


MODELS: dict[str, Callable[[int], nn.Module]] = {"cnn": cnn, "resnet18": resnet18}


# ---- the clock ----


class Clock:
    """Wall and CPU seconds of nested stages; what an inner one takes is not its outer one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.exports = 0
        self._inner = [[0.0, 0.0]]  # of each stage that is open: what its inner stages took

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = now()
        self._inner.append([0.0, 0.0])
        try:
            yield
        finally:
            inner = self._inner.pop()
            for i, (start, end) in enumerate(zip(begin, now(), strict=True)):
                self.seconds[name][i] += end - start - inner[i]
                self._inner[-1][i] += end - start

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Lets the functions of `STAGES` run as stages, and counts the exports."""
        wanted = {**STAGES, "observe": [(CalibratedLayer, "_observe")]}
        with contextlib.ExitStack() as stack:
            for name, functions in wanted.items():
                for owner, attribute in functions:
                    self._replace(stack, owner, attribute, self._staged(name, owner, attribute))
            self._replace(stack, torch.onnx, "export", self._counted(torch.onnx.export))
            yield

    def _staged(self, name: str, owner: Any, attribute: str) -> Callable[..., Any]:
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def staged(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return staged

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.exports += 1
            return function(*args, **kwargs)

        return counted

    @staticmethod
    def _replace(stack: contextlib.ExitStack, owner: Any, attribute: str, value: Any) -> None:
        stack.callback(setattr, owner, attribute, getattr(owner, attribute))
        setattr(owner, attribute, value)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


# ---- a search ----


class Evaluator(AutoCalibrationEvaluatorBase):
    """Runs the model on its data, and is satisfied when enough layers are float."""

    def __init__(self, clock: Clock, images: list[Tensor], calibrated: int, needed: int) -> None:
        self.clock, self.images, self.calibrated, self.needed = clock, images, calibrated, needed

    @torch.no_grad()
    def calibration(self, model: nn.Module) -> None:
        with self.clock.stage("calibration"):
            for batch in self.images[: self.calibrated]:
                model(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> int | None:
        """How many of its layers run in float; None: all."""
        with self.clock.stage("evaluate"):
            for batch in self.images:
                model(batch)
        switched = [m.enabled for m in model.modules() if hasattr(m, "enabled")]
        return switched.count(False) if switched else None

    def metric_eval(self, original: int | None, new: int | None) -> tuple[bool, float]:
        missing = 0 if new is None else max(self.needed - new, 0)
        return not missing, float(missing)


@dataclass(frozen=True)
class Run:
    """One search: its counts, and per column the wall and the CPU seconds."""

    layers: int
    evaluations: int
    calibrations: int
    exports: int
    seconds: dict[str, tuple[float, float]]


def run(model: nn.Module, images: list[Tensor], size: Size, needed: int, config: str) -> Run:
    """One search in a folder of its own; SystemExit for a wrong outcome."""
    clock = Clock()
    evaluator = Evaluator(clock, images[: size.evaluated], size.calibrated, needed)
    with temporary_directory(), clock.watching(), clock.stage("own"):
        result = amct.accuracy_based_auto_calibration(
            model,
            evaluator,
            config,
            "record.txt",
            "result/net",
            images[0][:1],
            progress=False,
        )
    check(result, needed)
    taken = clock.seconds
    rest = taken.pop("own")
    taken["calibration"] = add(taken["calibration"], taken["observe"])
    own = functools.reduce(add, (taken[name] for name in STAGES), rest)
    total = functools.reduce(add, (taken[name] for name in USER), own)
    seconds = {**taken, "total": total, "own": own, "rest": rest}
    return Run(
        layers=len(result.quantized_layers) + len(result.rolled_back_layers),
        evaluations=result.evaluations,
        calibrations=result.calibrations,
        exports=clock.exports,
        seconds={name: (wall, cpu) for name, (wall, cpu) in seconds.items()},
    )


def check(result: AutoCalibrationResult, needed: int) -> None:
    layers, fidelity = len(result.ranking), result.fidelity
    at_most = 2 + math.ceil(math.log2(layers)) + 1
    assert fidelity is not None
    difference, largest = fidelity.largest_difference, fidelity.largest_output or 0.0
    for right, what in (
        (result.satisfied, "the search did not end with a model that satisfies"),
        (len(result.rolled_back_layers) == needed, f"{result.rolled_back_layers} are float"),
        (result.evaluations <= at_most, f"{result.evaluations} evaluations, at most {at_most}"),
        (difference is not None and difference <= MOST_UNLIKE * largest, f"{fidelity}"),
    ):
        if not right:
            raise SystemExit(f"{what}; nothing is timed")


def add(one: list[float], other: list[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


# ---- measurement ----


@dataclass(frozen=True)
class Timing:
    """The medians of one case by one clock, in seconds."""

    model: str
    case: str
    clock: str  # wall or cpu
    layers: int
    evaluations: int
    calibrations: int
    exports: int
    own_share: float
    seconds: dict[str, float]


def measure(name: str, size: Size, repeats: int) -> list[Timing]:
    """Runs every case once to check it, then the cases in turns."""
    model = MODELS[name](size.width)
    shape = (size.batch, 3, size.image, size.image)
    images = [torch.randn(shape) for _ in range(max(size.evaluated, size.calibrated))]
    settle(model, images)
    runs: dict[str, list[Run]] = {case: [] for case in CASES}
    with temporary_directory() as folder:
        config = os.path.join(folder, "config.json")
        amct.create_quant_config(config, model, images[0][:1], batch_num=size.calibrated)
        for _ in range(1 + repeats):
            for case, needed in CASES.items():
                runs[case].append(run(model, images, size, needed, config))
    return [
        timing(name, case, clock, many[1:])
        for case, many in runs.items()
        for clock in ("wall", "cpu")
    ]


def timing(model: str, case: str, clock: str, runs: list[Run]) -> Timing:
    index = ("wall", "cpu").index(clock)
    names = dict.fromkeys(name for one in runs for name in one.seconds)
    seconds = {n: statistics.median(one.seconds[n][index] for one in runs) for n in names}
    share = statistics.median(
        one.seconds["own"][index] / one.seconds["total"][index] for one in runs
    )
    counts = {key: getattr(runs[0], key) for key in ("layers", "evaluations", "calibrations")}
    return Timing(
        model, case, clock, **counts, exports=runs[0].exports, own_share=share, seconds=seconds
    )


@contextlib.contextmanager
def temporary_directory() -> Iterator[str]:
    """A folder that is the working directory as long as it exists."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def print_table(timings: list[Timing]) -> None:
    rows = [
        {
            "model": t.model,
            "case": t.case,
            "layers": str(t.layers),
            "evals": str(t.evaluations),
            "calibs": str(t.calibrations),
            "exports": str(t.exports),
            "clock": t.clock,
            **{name: f"{t.seconds.get(name, 0.0):.3f}" for name in ("total", *USER, "observe")},
            "own": f"{t.seconds['own']:.3f}",
            "own %": f"{100 * t.own_share:.1f}",
            **{name: f"{t.seconds.get(name, 0.0):.3f}" for name in (*STAGES, "rest")},
        }
        for t in timings
    ]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]:>{width}}" for key, width in widths.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--repeats", type=int, help="timed runs of each case (default 3, quick 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="small models, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    repeats = options.repeats or (1 if options.quick else 3)
    sizes = QUICK if options.quick else SIZES

    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    timings = [t for name in options.model for t in measure(name, sizes[name], repeats)]
    print_table(timings)
    if options.json:
        rows = [asdict(timing) for timing in timings]
        options.json.write_text(json.dumps({"machine": facts, "timings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
