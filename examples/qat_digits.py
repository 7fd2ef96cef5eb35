"""Quantization-aware training from start to end, on the digits classifier of ptq_digits.py.

Trains the float model, then continues with quantizers in it: once with 8-bit weights and once with
4-bit weights, a quarter of the epochs at a hundredth of the learning rate. The second run is
stopped in the middle and restored from its checkpoint. Every trained model is exported, run in ONNX
Runtime and compared with post-training quantization to the same bits; the learned clip ranges are
plotted over the steps.

    python examples/qat_digits.py --output-dir outputs/qat_digits
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from ptq_digits import (
    BATCH_SIZE,
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

BATCH_NUM = 2  # batches that find the first clip ranges
LEARNING_RATE = 1e-4  # a hundredth of what the float model is trained with
BITS = {"8-bit weights": "INT8", "4-bit weights": "INT4"}

Ranges = dict[str, list[tuple[float, float]]]  # layer -> (clip_min, clip_max) after each step


class Retraining:
    """The files and the steps of one quantization-aware training."""

    def __init__(self, float_model: nn.Module, data: Digits, weights: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.float_model, self.data, self.folder = float_model, data, folder
        self.example = data.train_images[:BATCH_SIZE]
        self.config, self.record = str(folder / "retrain.json"), str(folder / "record.txt")
        self.ranges: Ranges = defaultdict(list)
        wishes = folder / "retrain.cfg"
        wishes.write_text(
            f"batch_num: {BATCH_NUM}\n"
            f"retrain_weight_quant_config {{ arq_retrain {{ dst_type: {weights} }} }}\n"
        )
        amct.create_quant_retrain_config(self.config, float_model, self.example, str(wishes))

    def create(self) -> nn.Module:
        return amct.create_quant_retrain_model(
            self.config, self.float_model, self.record, self.example
        )

    def restore(self, checkpoint: Path) -> nn.Module:
        return amct.restore_quant_retrain_model(
            self.config, self.float_model, self.record, self.example, str(checkpoint), "model"
        )

    def train(self, model: nn.Module, epochs: int) -> None:
        """The training loop of the float model; nothing in it knows of quantization."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        model.train()
        for _ in range(epochs):
            for batch in torch.randperm(len(self.data.train_images)).split(BATCH_SIZE):
                logits = model(self.data.train_images[batch])
                loss = nn.functional.cross_entropy(logits, self.data.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.note_ranges(model)

    def note_ranges(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name, clip_max in parameters.items():
            if name.endswith("acts_clip_max"):
                clip_min = parameters[name.replace("_max", "_min")]
                layer = name.removesuffix(".quant_module.acts_clip_max")
                self.ranges[layer].append((clip_min.item(), clip_max.item()))

    def save(self, model: nn.Module) -> Path:
        prefix = self.folder / "digits"
        amct.save_quant_retrain_model(
            self.config,
            model,
            self.record,
            str(prefix),
            self.example,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
        return self.folder / "digits_fake_quant_model.onnx"


# ---- comparison ----


def quantize_after_training(model: nn.Module, data: Digits, bits: int, folder: Path) -> Path:
    """Post-training quantization with weights of `bits`; the fake_quant model."""
    files = {name: str(folder / f"ptq_{name}") for name in ("config.json", "model.onnx", "record")}
    config, modified, record = files.values()
    wishes = folder / "ptq.cfg"
    wishes.write_text(
        f"batch_num: {BATCH_NUM} common_config {{ arq_quantize {{ quant_bits: {bits} }} }}\n"
    )
    batches = data.train_images.split(BATCH_SIZE)[:BATCH_NUM]
    amct.create_quant_config(config, model, batches[0], config_defination=str(wishes))
    calibrated = amct.quantize_model(
        config,
        modified,
        record,
        model,
        batches[0],
        input_names=["image"],
        dynamic_axes={"image": {0: "batch"}},
    )
    with torch.no_grad():
        for batch in batches:
            calibrated(batch)
    amct.save_model(modified, record, str(folder / "ptq"))
    return folder / "ptq_fake_quant_model.onnx"


def plot_ranges(ranges: Ranges, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for layer, clips in ranges.items():
        low, high = zip(*clips, strict=True)
        (line,) = axes.plot(high, label=layer)
        axes.plot(low, color=line.get_color())
    axes.set(xlabel="training step", ylabel="clip_min and clip_max", title="Learned clip ranges")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def compare(
    model: nn.Module, data: Digits, title: str, epochs: int, folder: Path
) -> dict[str, str]:
    """Trains with the weights that `title` says; the rows of the table."""
    weights, images, labels = BITS[title], data.test_images, data.test_labels
    retraining = Retraining(model, data, weights, folder)
    bits = int(weights.removeprefix("INT"))
    untrained = quantize_after_training(model, data, bits, folder)

    retrained = retraining.create()
    retraining.train(retrained, epochs)
    checkpoint = folder / "checkpoint.pth"
    torch.save({"model": retrained.state_dict()}, checkpoint)
    retrained = retraining.restore(checkpoint)  # as after an interruption
    retraining.train(retrained, epochs)

    torch_logits = run_torch(retrained.eval(), images)
    onnx_logits = run_onnx(retraining.save(retrained), images, BATCH_SIZE)
    plot_ranges(retraining.ranges, folder / "ranges.png")
    agree = torch.equal(torch_logits.argmax(1), onnx_logits.argmax(1))
    before = run_onnx(untrained, images, BATCH_SIZE)
    return {
        f"top-1, {title}, not trained": f"{top1(before, labels):.2%}",
        f"top-1, {title}, trained, torch": f"{top1(torch_logits, labels):.2%}",
        f"top-1, {title}, trained, fake_quant ONNX": f"{top1(onnx_logits, labels):.2%}",
        f"all predictions agree, {title}": "yes" if agree else "no",
        f"learned ranges, {title}": str(folder / "ranges.png"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/qat_digits"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"train {QUICK_EPOCHS} epochs only")
    args = parser.parse_args()

    torch.set_num_threads(1)  # layers this small leave a second thread waiting
    amct.set_logging_level("error", "error")
    data = load_data(args.seed)
    epochs = QUICK_EPOCHS if args.quick else EPOCHS
    model = train_digits(data, epochs, args.seed)
    rows = {
        "top-1, float model": f"{top1(run_torch(model, data.test_images), data.test_labels):.2%}"
    }
    for title, weights in BITS.items():
        folder = args.output_dir / weights.lower()
        # A quarter of the epochs, in two halves.
        rows |= compare(model, data, title, max(1, epochs // 8), folder)
    print_table(rows)


if __name__ == "__main__":
    main()
