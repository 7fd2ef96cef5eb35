"""Quantization-aware training from start to end, on the digits classifier of ptq_digits.py.

Trains the float model, then continues with quantizers in it: once with 8-bit weights and once with
4-bit weights, for a quarter of the epochs at a hundredth of the learning rate. Each run is stopped
in the middle and restored from its checkpoint. Every trained model is exported, run in ONNX
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
from torch import Tensor, nn

import amct_pytorch as amct

BATCH_NUM = 2  # batches that find the first clip ranges
LEARNING_RATE = 1e-4  # a hundredth of what the float model is trained with
CLIP_LEARNING_RATE = 1e-2  # clips have the size of activations, not that of weights
BITS = {"8-bit weights": "INT8", "4-bit weights": "INT4"}

Ranges = dict[str, list[tuple[float, float]]]  # layer -> (clip_min, clip_max) after each step


class Retraining:
    """The files and the steps of one quantization-aware training."""

    def __init__(self, float_model: nn.Module, data: Digits, weights: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.float_model, self.data, self.folder = float_model, data, folder
        self.example = data.train_images[:BATCH_SIZE]
        self.config, self.record = str(folder / "retrain.json"), str(folder / "record.txt")
        self.checkpoint = folder / "checkpoint.pth"
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

    def restore(self) -> nn.Module:
        return amct.restore_quant_retrain_model(
            self.config, self.float_model, self.record, self.example, str(self.checkpoint), "model"
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """That of the float model, with a group of their own for the clips."""
        clips, others = [], []
        for name, parameter in model.named_parameters():
            (clips if "_clip_" in name else others).append(parameter)
        groups = [
            {"params": others},
            {"params": clips, "lr": CLIP_LEARNING_RATE, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.01)

    def train(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]
    ) -> None:
        """The training loop of the float model; nothing in it knows of quantization."""
        model.train()
        for batch in batches:
            logits = model(self.data.train_images[batch])
            loss = nn.functional.cross_entropy(logits, self.data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.note_ranges(model)

    def train_in_two_parts(self, epochs: int) -> nn.Module:
        """The trained model; half way there it is written to a checkpoint and restored."""
        count = len(self.data.train_images)
        batches = [b for _ in range(epochs) for b in torch.randperm(count).split(BATCH_SIZE)]
        half = len(batches) // 2

        model = self.create()
        optimizer = self.optimizer(model)
        self.train(model, optimizer, batches[:half])
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, self.checkpoint)

        model = self.restore()  # in another process, after an interruption
        optimizer = self.optimizer(model)
        optimizer.load_state_dict(torch.load(self.checkpoint)["optimizer"])
        self.train(model, optimizer, batches[half:])
        return model

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

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for end, (axis, title) in enumerate(zip(axes, ("clip_min", "clip_max"), strict=True)):
        for number, (layer, clips) in enumerate(ranges.items()):
            # Before that a range is the extremes of one batch.
            values = [clip[end] for clip in clips[BATCH_NUM - 1 :]]
            if values[0]:  # 0 is where clip_min stays behind a ReLU
                steps = range(BATCH_NUM, BATCH_NUM + len(values))
                relative = [value / values[0] for value in values]
                label = f"{layer} ({values[0]:.2f})"
                axis.plot(steps, relative, color=f"C{number}", label=label)
        axis.set(xlabel="training step", title=title)
        axis.legend(title="layer (first value)", frameon=False, fontsize="small")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative to the first value")
    figure.suptitle("Learned clip ranges")
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

    retrained = retraining.train_in_two_parts(epochs)
    torch_logits = run_torch(retrained.eval(), images)
    onnx_logits = run_onnx(retraining.save(retrained), images, BATCH_SIZE)
    plot_ranges(retraining.ranges, folder / "ranges.png")
    agree = torch.equal(torch_logits.argmax(1), onnx_logits.argmax(1))
    before = run_onnx(untrained, images, BATCH_SIZE)
    return {
        f"top-1, {title}, not trained": f"{top1(before, labels):.2%}",
        f"top-1, {title}, trained, torch": f"{top1(torch_logits, labels):.2%}",
        f"top-1, {title}, trained, fake_quant ONNX": f"{top1(onnx_logits, labels):.2%}",
        f"test loss, {title}, not trained": test_loss(before, labels),
        f"test loss, {title}, trained, fake_quant ONNX": test_loss(onnx_logits, labels),
        f"all predictions agree, {title}": "yes" if agree else "no",
        f"learned ranges, {title}": str(folder / "ranges.png"),
    }


def test_loss(logits: Tensor, labels: Tensor) -> str:
    """What top-1 does not show on a few hundred images, where one of them is 0.2 %."""
    return f"{nn.functional.cross_entropy(logits, labels).item():.4f}"


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
    logits, labels = run_torch(model, data.test_images), data.test_labels
    rows = {
        "top-1, float model": f"{top1(logits, labels):.2%}",
        "test loss, float model": test_loss(logits, labels),
    }
    for title, weights in BITS.items():
        folder = args.output_dir / weights.lower()
        rows |= compare(model, data, title, epochs // 4, folder)
    print_table(rows)


if __name__ == "__main__":
    main()
