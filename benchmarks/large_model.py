"""Measures the memory that post-training quantization of a large model takes, in copies of it.

    python benchmarks/large_model.py [--gigabytes 3] [--json FILE] [--quick]

A model above the limit for external data, of linear layers and a convolution with random weights,
is calibrated and exported. Peak resident memory is read for each step; the user's own model is in
it. The limit is two copies of the weights: that model and the one that is calibrated. The exported
model is then run in ONNX Runtime in a process of its own. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
from _common import machine
from _memory import Meter, Step, in_process
from torch import Tensor, nn

import amct_pytorch as amct
from amct_pytorch.export import model_file

WIDTH, INNER = 2048, 8192
QUICK_WIDTH, QUICK_INNER = 256, 1024


class Feeder(nn.Module):
    """A residual pair of linear layers, as in a transformer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Large(nn.Module):
    """A convolution, and as many feeders as make up `wanted` bytes."""

    def __init__(self, wanted: int, width: int, inner: int) -> None:
        super().__init__()
        count = max(1, wanted // (8 * width * inner))
        self.stem = nn.Conv1d(width, width, 1)
        self.feeders = nn.Sequential(*(Feeder(width, inner) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.feeders(self.stem(x).transpose(1, 2))


def measure(wanted: int, width: int, inner: int, folder: str) -> tuple[int, list[Step]]:
    """The bytes of the weights, and the steps of the flow."""
    config, modified, record = (f"{folder}/{n}" for n in ("config.json", "m.onnx", "record.txt"))
    batch = torch.randn(1, width, 4)
    warm_up(folder)
    meter = Meter()
    model = Large(wanted, width, inner).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with meter.step("create_quant_config"):
        amct.create_quant_config(config, model, batch)
    with meter.step("quantize_model"):
        calibrated = amct.quantize_model(config, modified, record, model, batch)
    with meter.step("calibration"):
        calibrated(batch)
    with meter.step("save_model"):
        amct.save_model(modified, record, f"{folder}/out")
    torch.save((batch, amct.simulate_model(calibrated, record)(batch)), f"{folder}/check.pt")
    return weights, meter.steps


def warm_up(folder: str) -> None:
    """Loads what the flow imports, so that it does not count."""
    model, batch = Large(1, 4, 8).eval(), torch.randn(1, 4, 4)
    paths = [f"{folder}/warm{end}" for end in (".json", ".onnx", ".txt")]
    amct.create_quant_config(paths[0], model, batch)
    amct.quantize_model(*paths, model, batch)(batch)
    amct.save_model(*paths[1:], f"{folder}/warm")


def run_exported(folder: str) -> float:
    """The largest difference of the exported model from the simulation, of the largest output."""
    import onnxruntime

    batch, expected = torch.load(f"{folder}/check.pt")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = f"{folder}/out_fake_quant_model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    gap = (torch.from_numpy(result) - expected).abs().max() / expected.abs().max()
    return float(gap)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="64 MB, to see that it runs")
    parser.add_argument("--measure-in", help=argparse.SUPPRESS)
    parser.add_argument("--run-in", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_in:
        sizes = (1 << 26, QUICK_WIDTH, QUICK_INNER)
        limit = 1 << 20
        if not args.quick:
            sizes, limit = (int(args.gigabytes * 1e9), WIDTH, INNER), model_file.EXTERNAL_DATA_LIMIT
        with mock.patch.object(model_file, "EXTERNAL_DATA_LIMIT", limit):
            weights, steps = measure(*sizes, args.measure_in)
        rows = [asdict(step) | {"copies": step.peak_bytes / weights} for step in steps]
        print(json.dumps({"weights": weights, "steps": rows}))
        return
    if args.run_in:
        print(run_exported(args.run_in))
        return
    quick = ["--quick"] if args.quick else ["--gigabytes", str(args.gigabytes)]
    with tempfile.TemporaryDirectory() as folder:
        document = json.loads(in_process(__file__, "--measure-in", folder, *quick))
        difference = float(in_process(__file__, "--run-in", folder))
        sizes = {p.name: p.stat().st_size for p in sorted(Path(folder).glob("*.data"))}
    document |= {"machine": machine(), "difference": difference, "files": sizes}
    report(document)
    if args.json:
        Path(args.json).write_text(json.dumps(document, indent=2))


def report(document: dict) -> None:
    print("  ".join(f"{key}={value}" for key, value in document["machine"].items()))
    print(f"weights: {document['weights'] / 1e9:.2f} GB")
    print(f"{'step':22}{'seconds':>9}{'peak GB':>9}{'copies':>8}")
    for step in document["steps"]:
        peak = step["peak_bytes"] / 1e9
        print(f"{step['step']:22}{step['seconds']:9.1f}{peak:9.2f}{step['copies']:8.2f}")
    for name, size in document["files"].items():
        print(f"{name}: {size / 1e9:.2f} GB")
    print(f"ONNX Runtime against the torch simulation: {document['difference']:.1e} of the output")


if __name__ == "__main__":
    main()
