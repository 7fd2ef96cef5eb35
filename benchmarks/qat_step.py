"""Times one step of quantization-aware training against the float step, and peers beside it.

    python benchmarks/qat_step.py [--json FILE] [--quick]

ResNet-18: forward, loss, backward and SGD. The peers put their own learned quantizers of input and
weight into the same layers. What our layers compute is checked before anything is timed. See
README.md beside this file.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _common import resnet18
from _peers import QMAX, QMIN, eager_lsq, torch_learnable
from _timing import measure, parser, print_table, start, write
from torch import Tensor, nn

import amct_pytorch as amct
from amct_pytorch.layers.run import run_layer

SYNCS = ("aten::_local_scalar_dense", "aten::is_nonzero")

Step = Callable[[], None]


# ---- peers ----


compiled_lsq = torch.compile(eager_lsq, dynamic=False)


class PeerLayer(nn.Module):
    """A layer with a peer's quantizers."""

    def __init__(self, layer: Any, quantize: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.quantize = layer, quantize
        channels = layer.weight.detach().flatten(1).abs().amax(1) / QMAX
        self.weight_scale = nn.Parameter(channels)
        self.input_scale = nn.Parameter(torch.full((1,), 4 / QMAX))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantize(self.layer.weight, self.weight_scale)
        x = self.quantize(x, self.input_scale)
        return run_layer(self.layer, x, weight, self.layer.bias)


def with_peer(model: nn.Module, quantize: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d | nn.Linear):
                setattr(parent, name, PeerLayer(child, quantize))
    return model


# ---- ours ----


def retrained(model: nn.Module, images: Tensor, algorithm: str) -> nn.Module:
    """The model with our quantizers, its first ranges found."""
    with tempfile.TemporaryDirectory() as folder:
        wishes = Path(folder, "retrain.cfg")
        wishes.write_text(f"retrain_weight_quant_config {{ {algorithm} {{ }} }}\n")
        config, record = str(Path(folder, "retrain.json")), str(Path(folder, "record.txt"))
        amct.create_quant_retrain_config(config, model, images, str(wishes))
        result = amct.create_quant_retrain_model(config, model, record, images)
    check(result, images)
    return result


def check(model: nn.Module, images: Tensor) -> None:
    """The first layer computes the published formula, bit for bit before the convolution."""
    model.train()
    model(images)
    module = model.get_submodule("0").quant_module
    scale, offset = module.acts_scale, module.acts_offset
    codes = ((images / scale + offset).round().clamp(QMIN, QMAX) - offset) * scale
    if not torch.equal(codes, module.quantize_input(images).detach()):
        raise SystemExit("the quantized input is not what the formula gives")


# ---- measurement ----


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    model.train()

    def step() -> None:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def host_reads(step: Step) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    return sum(event.count for event in profiler.key_averages() if event.key in SYNCS)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="a small model and one round")
    options = arguments.parse_args()
    facts = start(options)
    amct.set_logging_level("error", "error")
    width, size, batch = (4, 32, 2) if options.quick else (64, 224, 8)

    model = resnet18(width)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    candidates = {
        "float": model,
        "amct_pytorch, arq_retrain": retrained(model, images, "arq_retrain"),
        "amct_pytorch, ulq_retrain": retrained(model, images, "ulq_retrain"),
        "torch learnable fake-quantize": with_peer(model, torch_learnable),
        "eager LSQ, compiled": with_peer(model, compiled_lsq),
        "eager LSQ": with_peer(model, eager_lsq),
    }
    steps = {name: step_of(candidate, images, labels) for name, candidate in candidates.items()}
    timings = measure(steps, 1 if options.quick else options.repeats)
    reads = {name: host_reads(step) for name, step in steps.items()}
    print_table(
        ("step", "seconds", "spread", "to float", "host reads"),
        [
            (name, f"{t.ms / 1e3:.3f}", f"{t.spread:.0%}", f"{t.ratio:.2f}x", str(reads[name]))
            for name, t in timings.items()
        ],
        words=1,
    )
    if options.json:
        rows = [{**asdict(t), "host_reads": reads[name]} for name, t in timings.items()]
        write(options.json, facts, rows)


if __name__ == "__main__":
    main()
