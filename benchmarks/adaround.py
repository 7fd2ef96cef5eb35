"""Compares AdaRound with ARQ at 4-bit weights: accuracy, signal to noise, seconds.

    python benchmarks/adaround.py [--json FILE] [--model digits|resnet] [--quick]

Two small models trained on scikit-learn's digits: the CNN of examples/ptq_digits.py on 8x8 pixels,
and a narrow ResNet-18 on the same images enlarged to 32x32. Activations have 8 bits; weights have
4 in every layer that can have them (one group, an even number of inputs) and 8 in the others. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import machine, resnet18
from torch import Tensor, nn

import amct_pytorch as amct

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from ptq_digits import Digits, DigitsNet, load_data, run_torch, sqnr_db, top1

BATCH_SIZE = 64
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Case:
    """What one way of quantizing a model makes of it."""

    model: str
    weights: str
    top1: float
    sqnr_db: float | None  # of the outputs for the test images against the float model
    seconds: float | None  # of quantize_model and calibration


def enlarged(data: Digits) -> Digits:
    """Three channels of 32x32 pixels."""

    def enlarge(images: Tensor) -> Tensor:
        larger = nn.functional.interpolate(images, size=32, mode="bilinear", align_corners=False)
        return larger.expand(-1, 3, -1, -1).contiguous()

    images = enlarge(data.train_images), enlarge(data.test_images)
    return Digits(images[0], data.train_labels, images[1], data.test_labels)


def trained(model: nn.Module, data: Digits, epochs: int) -> nn.Module:
    """`model`, trained on the training images, in eval mode."""
    count = len(data.train_images)
    steps = -(-count // BATCH_SIZE) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(count).split(BATCH_SIZE):
            logits = model(data.train_images[batch])
            loss = nn.functional.cross_entropy(logits, data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def quantized(model: nn.Module, data: Digits, weights: dict[str, Any]) -> tuple[nn.Module, float]:
    """The simulated quantized model, and the seconds it took to make its factors and weights."""
    batches = data.train_images.split(BATCH_SIZE)[:CALIBRATION_BATCHES]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("config.json", "modified.onnx", "record.txt")]
        amct.create_quant_config(paths[0], model, batches[0], batch_num=CALIBRATION_BATCHES)
        config = json.loads(Path(paths[0]).read_text())
        modules = dict(model.named_modules())
        for name, module in modules.items():
            if name in config and hasattr(module, "weight"):
                wanted = {**weights, "num_bits": 4 if packs(module) else 8}
                wanted["channel_wise"] = not isinstance(module, nn.Linear)
                config[name]["weight_quant_params"] = wanted
        Path(paths[0]).write_text(json.dumps(config))
        started = time.perf_counter()
        calibrated = amct.quantize_model(*paths, model, batches[0])
        with torch.no_grad():
            for batch in batches:
                calibrated(batch)
        seconds = time.perf_counter() - started
        return amct.simulate_model(calibrated, paths[2]), seconds


def packs(module: nn.Module) -> bool:
    """Whether the layer can have 4-bit weights."""
    inputs = getattr(module, "in_channels", None) or module.in_features
    return getattr(module, "groups", 1) == 1 and inputs % 2 == 0


def compare(
    name: str, model: nn.Module, data: Digits, iterations: list[int], show: Callable[[Case], None]
) -> list[Case]:
    images, labels = data.test_images, data.test_labels
    expected = run_torch(model, images)
    cases = [Case(name, "float", top1(expected, labels), None, None)]
    show(cases[0])
    ways = {"ARQ": {"wts_algo": "arq_quantize"}}
    for count in iterations:
        ways[f"AdaRound, {count} iterations"] = {"wts_algo": "ada_quantize", "num_iteration": count}
    for way, weights in ways.items():
        simulated, seconds = quantized(model, data, weights)
        logits = run_torch(simulated, images)
        accuracy, sqnr = top1(logits, labels), sqnr_db(expected, logits)
        cases.append(Case(name, way, accuracy, sqnr, seconds))
        show(cases[-1])
    return cases


def show(case: Case) -> None:
    sqnr = "" if case.sqnr_db is None else f"{case.sqnr_db:.1f}"
    seconds = "" if case.seconds is None else f"{case.seconds:.1f}"
    print(
        f"{case.model:<8} {case.weights:<28} {case.top1:>7.2%} {sqnr:>8} {seconds:>8}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--model", choices=["digits", "resnet"], help="only this model")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--iterations", type=int, nargs="+", default=[0, 1000])
    parser.add_argument("--quick", action="store_true", help="little training, 0 and 60 iterations")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    amct.set_logging_level("error", "error")
    iterations = [0, 60] if options.quick else options.iterations
    epochs = 1 if options.quick else 20

    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{'model':<8} {'weights':<28} {'top-1':>7} {'SQNR dB':>8} {'seconds':>8}")
    cases: list[Case] = []
    for name in [options.model] if options.model else ["digits", "resnet"]:
        torch.manual_seed(0)
        data = load_data(seed=0)
        data = data if name == "digits" else enlarged(data)
        model = DigitsNet() if name == "digits" else resnet18(8)
        cases += compare(name, trained(model, data, epochs), data, iterations, show)
    if options.json:
        rows = [asdict(case) for case in cases]
        options.json.write_text(json.dumps({"machine": facts, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
