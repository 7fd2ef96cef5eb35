"""Times post-training quantization as a whole, and the memory it takes, beside the float model.

    python benchmarks/flow.py [--model NAME] [--repeats 5] [--json FILE] [--quick]

ResNet-50, MobileNetV2 and ViT-S/16 with random weights see batches of 8 images at 224x224, and are
quantized to 8 bits with IFMR. First the results are checked. Then each round runs the float model,
the model that calibrates, a plain export and each verb once. Memory is that of a process of its
own. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnxruntime
import torch
from _common import ViT, mobilenet_v2, resnet50, settle
from _memory import Meter, in_process
from _timing import parser, print_table, start, write
from torch import Tensor, nn

import amct_pytorch as amct
from amct_pytorch.calibrators import IFMR
from amct_pytorch.layers.calibrate import CalibratedLayer

BATCH = 8
OPSET = 13
VERBS = ("create_quant_config", "quantize_model", "save_model")
MOST_GAP = 0.02  # of the output: LayerNorm and GELU differ in last bits, and so do some codes

MOST_FORWARD = 1.25  # of a calibrating forward to the float one
MOST_VERBS = 3.0  # of the three verbs together to a plain export
MOST_STATE = 64 << 20  # bytes for each tensor that is calibrated at the same time
BESIDES = 32 << 20  # bytes of buffers and code of libraries, and of nodes

# Of memory: all that the model holds, what a forward needs beyond it, what the calibrators hold
# between two batches, and what is left of that when all layers are done.
PARTS = ("weights", "activations", "states", "left")

Make = Callable[[int], nn.Module]  # of the size of images
MODELS: dict[str, Make] = {
    "resnet50": lambda size: resnet50(64),
    "mobilenet_v2": lambda size: mobilenet_v2(32),
    "vit_s": lambda size: ViT(384, size),
    "resnet200": lambda size: resnet50(16, (3, 24, 36, 3)),  # narrow: what many layers take
}
QUICK: dict[str, Make] = {
    "resnet50": lambda size: resnet50(8, (1, 1, 1, 1)),
    "mobilenet_v2": lambda size: mobilenet_v2(8),
    "vit_s": lambda size: ViT(48, size, depth=2),
}


@dataclass(frozen=True)
class Case:
    """A model in evaluation mode, and what it is run on and traced with."""

    name: str
    model: nn.Module
    batch: Tensor
    image: Tensor

    @classmethod
    def of(cls, name: str, quick: bool) -> Case:
        torch.manual_seed(0)
        size = 64 if quick else 224
        batch = torch.randn(BATCH, 3, size, size)
        model = settle((QUICK if quick else MODELS)[name](size), [batch])
        return cls(name, model, batch, batch[:1].clone())


@dataclass(frozen=True)
class Flow:
    """The verbs on the files of one folder."""

    case: Case
    folder: str
    batch_num: int = 1

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def plain_export(self) -> None:
        arguments = self.case.model, (self.case.image,), self.path("plain.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            torch.onnx.export(*arguments, opset_version=OPSET, dynamo=False)

    def create_quant_config(self) -> None:
        path, case = self.path("config.json"), self.case
        amct.create_quant_config(path, case.model, case.image, batch_num=self.batch_num)

    def quantize_model(self) -> nn.Module:
        files = [self.path(name) for name in ("config.json", "modified.onnx", "record.txt")]
        axes = {"x": {0: "n"}}
        return amct.quantize_model(
            *files, self.case.model, self.case.image, input_names=["x"], dynamic_axes=axes
        )

    def save_model(self) -> None:
        amct.save_model(self.path("modified.onnx"), self.path("record.txt"), self.path("out"))


# ---- correctness ----


def check(case: Case) -> tuple[int, dict[str, int]]:
    """The number of calibrated layers, and of exports in each verb.

    Raises unless observing changes no output and ONNX Runtime agrees with the simulation.
    """
    with tempfile.TemporaryDirectory() as folder:
        flow, exports = Flow(case, folder), {}
        calibrated: Any = None
        for verb in VERBS:
            with mock.patch.object(torch.onnx, "export", wraps=torch.onnx.export) as export:
                result = getattr(flow, verb)()
            exports[verb] = export.call_count
            if verb == "quantize_model":
                calibrated = result
                observed = calibrated(case.batch)
        if not torch.equal(observed, calibrated(case.batch)):
            raise AssertionError(f"{case.name}: the output of the batch that is observed differs")
        simulated = amct.simulate_model(calibrated, flow.path("record.txt"))(case.batch)
        result = run_exported(flow.path("out_fake_quant_model.onnx"), case.batch)
    gap = float((result - simulated).abs().max() / simulated.abs().max())
    if gap > MOST_GAP:
        raise AssertionError(f"{case.name}: ONNX Runtime differs by {gap:.1e} of the output")
    return sum(isinstance(m, CalibratedLayer) for m in calibrated.modules()), exports


def run_exported(path: str, batch: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": batch.numpy()})
    return torch.from_numpy(result)


# ---- time ----

Seconds = dict[str, float]  # of the parts of one round


def one_round(case: Case) -> Seconds:
    """Every part once, the forwards next to each other."""
    seconds: Seconds = {}

    def run(part: str, function: Callable[[], Any]) -> Any:
        gc.collect()  # what the part before has left is not its matter
        begin = time.perf_counter()
        result = function()
        seconds[part] = time.perf_counter() - begin
        return result

    with tempfile.TemporaryDirectory() as once, tempfile.TemporaryDirectory() as thrice:
        flow, several = Flow(case, once), Flow(case, thrice, batch_num=3)
        several.create_quant_config()
        of_several = several.quantize_model()
        run("plain export", flow.plain_export)
        run("create_quant_config", flow.create_quant_config)
        calibrated = run("quantize_model", flow.quantize_model)
        run("float", lambda: case.model(case.batch))
        with mock.patch.object(IFMR, "compute", timed(IFMR.compute, seconds, "search")):
            run("only batch", lambda: calibrated(case.batch))
        run("first of three", lambda: of_several(case.batch))
        run("second of three", lambda: of_several(case.batch))
        run("save_model", flow.save_model)
    return seconds


def timed(function: Callable[..., Any], seconds: Seconds, part: str) -> Callable[..., Any]:
    """`function`, its time added up."""

    def run(*args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args)
        finally:
            seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begin

    return run


def ratios(seconds: Seconds) -> dict[str, float]:
    """Of the forwards to the float one, of the verbs to the plain export."""
    forwards = ("only batch", "first of three", "second of three")
    of_float = {part: seconds[part] / seconds["float"] for part in forwards}
    of_export = {verb: seconds[verb] / seconds["plain export"] for verb in VERBS}
    return {**of_float, **of_export, "verbs": sum(of_export.values())}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}


# ---- memory ----


def measure_memory(name: str, quick: bool) -> dict[str, Any]:
    """Peaks of the steps of a calibration of two batches, in bytes above the process without it."""
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter()
        case = Case.of(name, quick)
        flow = Flow(case, folder, batch_num=2)
        before = meter.now()
        with meter.step("float"):
            case.model(case.batch)
        activations = meter.steps[0].peak_bytes - before
        with meter.step("create_quant_config"):
            flow.create_quant_config()
        with meter.step("quantize_model"):
            calibrated: Any = flow.quantize_model()
        before = meter.now()
        with meter.step("first batch"):
            calibrated(case.batch)
        states = meter.now() - before
        with meter.step("last batch"):
            calibrated(case.batch)
        left = meter.now() - before
        with meter.step("save_model"):
            flow.save_model()
    layers = sum(isinstance(m, CalibratedLayer) for m in calibrated.modules())
    weights = sum(t.nbytes for t in (*case.model.parameters(), *case.model.buffers()))
    peaks = {step.step: step.peak_bytes for step in meter.steps}
    # The model, its copy, what a forward has in use, and what libraries and graphs take.
    bound = 2 * weights + activations + BESIDES
    bounds = {step: bound + ("batch" in step) * layers * MOST_STATE for step in peaks}
    return {
        "weights": weights,
        "activations": activations,
        "states": states,
        "left": left,
        "peaks": peaks,
        "bounds": bounds,
        "over bound": max(peak / bounds[step] for step, peak in peaks.items()),
    }


def warm_up() -> None:
    """Loads what the flow imports, so that it does not count."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    image = torch.randn(1, 3, 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        flow = Flow(Case("warm-up", model, image, image), folder)
        flow.create_quant_config()
        flow.quantize_model()(image)
        flow.save_model()


# ---- report ----


def row_of(name: str, repeats: int, quick: bool) -> dict[str, Any]:
    """All that is found of one model."""
    case = Case.of(name, quick)
    layers, exports = check(case)
    one_round(case)
    rounds = [one_round(case) for _ in range(repeats)]
    arguments = ("--memory", name, *(["--quick"] if quick else []))
    memory = json.loads(in_process(__file__, *arguments))
    ratio = medians([ratios(seconds) for seconds in rounds])
    return {
        "model": name,
        "layers": layers,
        "rounds": repeats,
        "seconds": medians(rounds),
        "ratios": ratio,
        "exports": exports,
        "memory": memory,
        "targets": {
            "calibrating over float forward": (ratio["only batch"], MOST_FORWARD),
            "verbs over plain export": (ratio["verbs"], MOST_VERBS),
            "exports in a verb": (max(exports.values()), 1),
            "peak of memory over its bound": (memory["over bound"], 1.0),
        },
    }


def report(row: dict[str, Any]) -> None:
    print(f"\n{row['model']}: {row['layers']} layers, {row['rounds']} rounds")
    seconds, ratio = row["seconds"], row["ratios"]
    seconds = seconds | {"verbs": sum(seconds[verb] for verb in VERBS)}
    cells = [
        (part, f"{s:.3f}", f"{ratio[part]:.2f}x" if part in ratio else "")
        for part, s in seconds.items()
    ]
    print_table(("part", "seconds", "ratio"), cells)
    memory = row["memory"]
    print(f"MB of {', '.join(f'{part} {mb(memory[part])}' for part in PARTS)}")
    bounds = memory["bounds"]
    cells = [(step, mb(peak), mb(bounds[step])) for step, peak in memory["peaks"].items()]
    print_table(("step", "peak MB", "bound"), cells)
    for target, (value, most) in row["targets"].items():
        print(f"{target}: {value:.2f}, at most {most}: {'met' if value <= most else 'MISSED'}")


def mb(size: int) -> str:
    return f"{size / 2**20:.0f}"


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.set_defaults(repeats=5)
    options.add_argument("--model", choices=MODELS, nargs="+", default=list(QUICK))
    options.add_argument("--quick", action="store_true", help="small models, to see that it runs")
    options.add_argument("--memory", choices=MODELS, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.memory:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measure_memory(arguments.memory, arguments.quick)))
        return
    facts = start(arguments)
    rows = []
    for name in arguments.model:
        rows.append(row_of(name, arguments.repeats, arguments.quick))
        report(rows[-1])
    if arguments.json:
        write(arguments.json, facts, rows)


if __name__ == "__main__":
    main()
