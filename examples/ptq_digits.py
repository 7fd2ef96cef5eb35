"""Post-training quantization from start to end: a digits classifier, trained, quantized, compared.

Trains a small CNN on scikit-learn's bundled digits (1797 images of 8x8 pixels), quantizes it to 8
bits with a few batches of training images, and compares three models on the test images: the float
model, the quantized model simulated in torch, and the exported fake_quant ONNX in ONNX Runtime.

    python examples/ptq_digits.py --output-dir outputs/ptq_digits
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import amct_pytorch as amct

BATCH_SIZE = 64
CALIBRATION_BATCHES = 4
EPOCHS = 20
QUICK_EPOCHS = 4  # enough to see everything work


# ---- the float model ----


def conv_bn_relu(channels_in: int, channels_out: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class DigitsNet(nn.Module):
    """The layer types that PTQ quantizes, on images of 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(1, 16)
        self.residual = conv_bn_relu(16, 16)
        self.depthwise = conv_bn_relu(16, 16, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.pool = nn.AvgPool2d(2)
        self.features = conv_bn_relu(32, 32)
        self.upsample = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.classifier = nn.Linear(8 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.residual(x)
        x = torch.relu(self.pointwise(self.depthwise(x)))
        x = self.features(self.pool(x))
        x = torch.relu(self.upsample(x))
        return self.classifier(x.flatten(1))


@dataclass(frozen=True)
class Digits:
    train_images: Tensor  # [N, 1, 8, 8], float32 in [0, 1]
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data(seed: int) -> Digits:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    split = train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)
    return Digits(train_images, train_labels, test_images, test_labels)


def train_digits(data: Digits, epochs: int, seed: int) -> nn.Module:
    """A DigitsNet trained on the training images, in eval mode."""
    torch.manual_seed(seed)
    model = DigitsNet()
    count = len(data.train_images)
    steps = -(-count // BATCH_SIZE) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(count).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(
                model(data.train_images[batch]), data.train_labels[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# ---- quantization ----


@dataclass(frozen=True)
class Quantized:
    model: nn.Module  # what the ONNX files compute, in torch
    record: Path
    fake_quant_onnx: Path
    deploy_onnx: Path


def quantize_digits(model: nn.Module, data: Digits, folder: Path) -> Quantized:
    """Calibrates `model` on a few training batches and writes all files to `folder`."""
    config, record = folder / "config.json", folder / "record.txt"
    modified_onnx = folder / "modified.onnx"  # quantize_model writes it for save_model
    batches = data.train_images.split(BATCH_SIZE)[:CALIBRATION_BATCHES]

    amct.create_quant_config(str(config), model, batches[0], batch_num=CALIBRATION_BATCHES)
    calibrated = amct.quantize_model(
        str(config),
        str(modified_onnx),
        str(record),
        model,
        batches[0],
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    with torch.no_grad():
        for batch in batches:
            calibrated(batch)
    amct.save_model(str(modified_onnx), str(record), str(folder / "digits"))

    return Quantized(
        amct.simulate_model(calibrated, str(record)),
        record,
        folder / "digits_fake_quant_model.onnx",
        folder / "digits_deploy_model.onnx",
    )


# ---- comparison ----


def run_torch(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def run_onnx(path: Path, images: Tensor, batch_size: int) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = images.split(batch_size)
    return torch.cat(
        [torch.from_numpy(session.run(None, {"image": b.numpy()})[0]) for b in batches]
    )


def top1(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def sqnr_db(signal: Tensor, noisy: Tensor) -> float:
    """Signal-to-quantization-noise ratio: 10 log10(sum(signal^2) / sum((noisy - signal)^2))."""
    noise = (noisy - signal).double().square().sum()
    return 10 * (signal.double().square().sum() / noise).log10().item()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights: the parameters of two or more dimensions."""
    return sum(p.nbytes for p in model.parameters() if p.dim() > 1)


def onnx_weight_bytes(path: Path) -> int:
    """Bytes of the weights: the initializers of two or more dimensions."""
    tensors = onnx.load(path).graph.initializer
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in tensors if len(t.dims) > 1)


def compare(model: nn.Module, quantized: Quantized, data: Digits) -> dict[str, str]:
    """The rows of the table: what was measured, and the value."""
    images, labels = data.test_images, data.test_labels
    float_logits = run_torch(model, images)
    torch_logits = run_torch(quantized.model, images)
    # Not the traced batch size, and a smaller last batch: the batch dimension is dynamic.
    onnx_logits = run_onnx(quantized.fake_quant_onnx, images, batch_size=100)
    agree = torch.equal(torch_logits.argmax(1), onnx_logits.argmax(1))
    return {
        "top-1, float model": f"{top1(float_logits, labels):.2%}",
        "top-1, quantized model in torch": f"{top1(torch_logits, labels):.2%}",
        "top-1, fake_quant ONNX": f"{top1(onnx_logits, labels):.2%}",
        "largest difference, torch to ONNX": f"{(torch_logits - onnx_logits).abs().max():.3g}",
        "all predictions agree, torch and ONNX": "yes" if agree else "no",
        "SQNR, fake_quant ONNX to float": f"{sqnr_db(float_logits, onnx_logits):.1f} dB",
        "weights, float": f"{weight_bytes(model)} bytes",
        "weights, deploy": f"{onnx_weight_bytes(quantized.deploy_onnx)} bytes",
        "record of factors": str(quantized.record),
        "fake_quant ONNX": str(quantized.fake_quant_onnx),
        "deploy ONNX": str(quantized.deploy_onnx),
    }


def print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/ptq_digits"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"train {QUICK_EPOCHS} epochs only")
    args = parser.parse_args()

    torch.set_num_threads(1)  # layers this small leave a second thread waiting
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = load_data(args.seed)
    model = train_digits(data, QUICK_EPOCHS if args.quick else args.epochs, args.seed)
    quantized = quantize_digits(model, data, args.output_dir)
    print_table(compare(model, quantized, data))


if __name__ == "__main__":
    main()
