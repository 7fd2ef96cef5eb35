"""Accuracy-based automatic calibration: say what accuracy you need, get the layers that it costs.

Trains the digits classifier of ptq_digits.py and then makes one layer fragile on purpose: one
channel of its input is 500 times as large as the others, which 8 bits cannot hold side by side.
The float model computes what it did before. The search finds the layer, leaves it in float and
quantizes the rest; ONNX Runtime confirms the accuracy on the test images.

    python examples/auto_calibration_digits.py --output-dir outputs/auto_calibration_digits
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ptq_digits import (
    BATCH_SIZE,
    CALIBRATION_BATCHES,
    EPOCHS,
    QUICK_EPOCHS,
    Digits,
    load_data,
    print_table,
    run_onnx,
    run_torch,
    top1,
    train_digits,
)
from torch import nn

import amct_pytorch as amct
from amct_pytorch.common.auto_calibration import (
    AutoCalibrationEvaluatorBase,
    AutoCalibrationResult,
)

OUTLIER = 500.0
TOLERANCE = 0.01  # of accuracy


def make_fragile(model: nn.Module) -> None:
    """Scales one channel up in front of `pointwise` and down again in its weights."""
    channel = 3
    with torch.no_grad():
        batch_norm: Any = model.get_submodule("depthwise.1")
        batch_norm.weight[channel] *= OUTLIER
        batch_norm.bias[channel] *= OUTLIER  # through the ReLU between them as well
        model.get_submodule("pointwise").weight[:, channel] /= OUTLIER  # type: ignore[operator]


class DigitsEvaluator(AutoCalibrationEvaluatorBase):
    """Calibrates on training images, evaluates on test images."""

    def __init__(self, data: Digits) -> None:
        self.data = data

    def calibration(self, model: nn.Module) -> None:
        for images in self.data.train_images.split(BATCH_SIZE)[:CALIBRATION_BATCHES]:
            run_torch(model, images)

    def evaluate(self, model: nn.Module) -> float:
        return top1(run_torch(model, self.data.test_images), self.data.test_labels)

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        loss = original_metric - new_metric
        return loss <= TOLERANCE, loss


def calibrate(model: nn.Module, data: Digits, folder: Path) -> AutoCalibrationResult:
    images = data.train_images[:BATCH_SIZE]
    config = str(folder / "config.json")
    amct.create_quant_config(config, model, images, batch_num=CALIBRATION_BATCHES)
    return amct.accuracy_based_auto_calibration(
        model=model,
        model_evaluator=DigitsEvaluator(data),
        config_file=config,
        record_file=str(folder / "record.txt"),
        save_dir=str(folder / "digits"),
        input_data=images,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        strategy="BinarySearch",
        sensitivity="CosineSimilarity",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/auto_calibration_digits"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"train {QUICK_EPOCHS} epochs only")
    args = parser.parse_args()

    torch.set_num_threads(1)  # layers this small leave a second thread waiting
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = load_data(args.seed)
    model = train_digits(data, QUICK_EPOCHS if args.quick else args.epochs, args.seed)
    make_fragile(model)
    result = calibrate(model, data, args.output_dir)
    rows = {
        "satisfied": "yes" if result.satisfied else "no",
        "top-1, float model": f"{result.original_metric:.2%}",
        "top-1, everything quantized": f"{result.trials[0].metric:.2%}",
    }
    if result.satisfied:
        onnx = Path(result.files["fake_quant_model"])
        logits = run_onnx(onnx, data.test_images, batch_size=100)
        rows |= {
            "top-1, result": f"{result.final_metric:.2%}",
            "top-1, its fake_quant ONNX": f"{top1(logits, data.test_labels):.2%}",
            "layers left in float": ", ".join(result.rolled_back_layers),
            "layers quantized": ", ".join(result.quantized_layers),
            "fake_quant ONNX": str(onnx),
            "deploy ONNX": result.files["deploy_model"],
        }
    rows["evaluations"] = str(result.evaluations)
    rows["report"] = result.files["report_html"]
    print_table(rows)


if __name__ == "__main__":
    main()
