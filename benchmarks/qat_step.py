"""Times one step of quantization-aware training against the float step, and peers beside it.

    python benchmarks/qat_step.py [--json FILE] [--quick]

ResNet-18: forward, loss, backward and SGD. The peers put their own learned quantizers of input and
weight into the same layers. What our layers compute is checked before anything is timed. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
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
from amct_pytorch.layers.run import run_layer

QMIN, QMAX = -128, 127
SYNCS = ("aten::_local_scalar_dense", "aten::is_nonzero")

Step = Callable[[], None]


@dataclass(frozen=True)
class Timing:
    """The median of one candidate, and its ratio to the float step of the same round."""

    candidate: str
    seconds: float
    ratio: float
    host_reads: int  # in one step


# ---- peers ----


def eager_lsq(x: Tensor, scale: Tensor) -> Tensor:
    """Learned step size quantization (Esser et al. 2020), one scale or one per output channel."""
    gradient = 1.0 / (x.numel() * QMAX / scale.numel()) ** 0.5
    scale = scale * gradient + (scale * (1 - gradient)).detach()
    shaped = scale.reshape(-1, *[1] * (x.dim() - 1)) if scale.numel() > 1 else scale
    codes = (x / shaped).clamp(QMIN, QMAX)
    return (codes + (codes.round() - codes).detach()) * shaped


compiled_lsq = torch.compile(eager_lsq, dynamic=False)


def torch_learnable(x: Tensor, scale: Tensor) -> Tensor:
    zeros, factor = torch.zeros_like(scale), 1.0
    if scale.numel() == 1:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zeros, QMIN, QMAX, factor)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, zeros, 0, QMIN, QMAX, factor)


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


def measure(steps: dict[str, Step], repeats: int) -> list[Timing]:
    """Medians over rounds in which every candidate makes one step; the first rounds warm up."""
    rounds = []
    for _ in range(2 + repeats):
        seconds = {}
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - begin
        rounds.append(seconds)
    rounds = rounds[2:]
    return [
        Timing(
            name,
            statistics.median(r[name] for r in rounds),
            statistics.median(r[name] / r["float"] for r in rounds),
            host_reads(step),
        )
        for name, step in steps.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--repeats", type=int, help="rounds (default 9, quick 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    amct.set_logging_level("error", "error")
    width, size, batch = (4, 32, 2) if options.quick else (64, 224, 8)

    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
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
    timings = measure(steps, options.repeats or (1 if options.quick else 9))
    print(f"{'step':<32} {'seconds':>8} {'to float':>9} {'host reads':>11}")
    for t in timings:
        print(f"{t.candidate:<32} {t.seconds:8.3f} {t.ratio:8.2f}x {t.host_reads:11d}")
    if options.json:
        rows = [asdict(timing) for timing in timings]
        options.json.write_text(json.dumps({"machine": facts, "timings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
