"""Times the ops against torch's own: interleaved runs, medians, as ratios.

    python benchmarks/ops.py [--json FILE] [--repeats 9] [--threads 2] [--scale 1.0]

Every comparison first checks that the results agree. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _common import machine

from amct_pytorch.ops import arq, fake_quantize, ifmr, quantize, ulq

NUM_BITS = 8
QMIN, QMAX = -128, 127
FLT_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Contest:
    """One op and what it is measured against, as functions without arguments."""

    name: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Medians of one pair; `ratio` above 1 means ours is faster."""

    name: str
    other: str
    ours_ms: float
    other_ms: float

    @property
    def ratio(self) -> float:
        return self.other_ms / self.ours_ms


def require_equal(name: str, ours: torch.Tensor, other: torch.Tensor) -> None:
    if not torch.equal(ours, other):
        raise SystemExit(f"{name}: results differ, nothing is timed")


# ---- contests ----


def against_torch(elements: int, channels: int) -> list[Contest]:
    x = torch.randn(elements // channels * channels) * 3
    rows = x.view(channels, -1)
    scale, offset = torch.tensor(0.02), torch.tensor(3, dtype=torch.int32)
    scales = torch.rand(channels) * 0.05 + 0.01
    offsets = torch.zeros(channels, dtype=torch.int32)

    def torch_per_tensor() -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, offset, QMIN, QMAX)

    def torch_per_channel() -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(rows, scales, offsets, 0, QMIN, QMAX)

    def torch_quantize() -> torch.Tensor:
        codes = torch.round(x * scale.reciprocal()).add_(offset).clamp_(QMIN, QMAX)
        return codes.to(torch.int8)

    def torch_arq() -> tuple[torch.Tensor, torch.Tensor]:
        lo, hi = torch.aminmax(rows, dim=1)
        scale = torch.where(hi.abs() < lo.abs(), lo.abs() / -QMIN, hi.abs() / QMAX)
        return torch.where(scale < FLT_EPS, 1.0, scale), torch.zeros_like(scale, dtype=torch.int32)

    require_equal("fake_quantize", fake_quantize(x, scale, offset), torch_per_tensor())
    require_equal(
        "fake_quantize, axis 0", fake_quantize(rows, scales, offsets, axis=0), torch_per_channel()
    )
    require_equal("quantize", quantize(x, scale, offset), torch_quantize())
    require_equal("arq", arq(rows, axis=0)[0], torch_arq()[0])
    size = f"{x.numel() / 2**20:.3g}M"
    return [
        Contest(
            f"fake_quantize {size}",
            lambda: fake_quantize(x, scale, offset),
            {"torch.fake_quantize": torch_per_tensor, "clone": x.clone},
        ),
        Contest(
            f"fake_quantize {size}, axis 0",
            lambda: fake_quantize(rows, scales, offsets, axis=0),
            {"torch.fake_quantize": torch_per_channel, "clone": rows.clone},
        ),
        Contest(
            f"quantize {size}",
            lambda: quantize(x, scale, offset),
            {"round, clamp, to int8": torch_quantize, "clone": x.clone},
        ),
        Contest(f"arq {size}, axis 0", lambda: arq(rows, axis=0), {"aminmax": torch_arq}),
    ]


def eager_ifmr(x: torch.Tensor) -> torch.Tensor:
    """The scale of the candidate with the least loss, in torch operations; asymmetric, 8 bits."""
    rank = x.numel() - int(0.999999 * x.numel())
    hi = x.topk(rank).values[-1].clamp(min=0)
    lo = x.topk(rank, largest=False).values[-1].clamp(max=0)
    losses, scales = [], []
    for ratio in torch.arange(0.7, 1.3, 0.01):
        clip = ratio * hi
        scale = (clip - lo) / (QMAX - QMIN)
        levels = torch.round(torch.clamp(x, lo, clip) / scale) * scale
        losses.append(torch.mean((levels - x) ** 2))
        scales.append(scale)
    return scales[int(torch.stack(losses).argmin())]


def against_search(elements: int) -> list[Contest]:
    x = torch.randn(elements)
    ours, eager = float(ifmr(x)[0]), float(eager_ifmr(x))
    # The eager losses are float32 sums: near the least, a neighbour may win.
    if abs(ours - eager) > 0.02 * eager:
        raise SystemExit(f"ifmr: scale {ours}, the eager search finds {eager}; nothing is timed")
    name = f"ifmr {elements / 2**20:.3g}M"
    return [Contest(name, lambda: ifmr(x), {"61 eager candidates": lambda: eager_ifmr(x)})]


def eager_ulq(x: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """ulq in torch operations, the rounding detached; for clips on either side of zero."""
    scale = (high - low) / (QMAX - QMIN)
    offset = torch.round(QMIN - low / scale).detach()
    codes = torch.clamp(torch.round(x / scale + offset), QMIN, QMAX)
    above, below = x > scale * (QMAX - offset), x < scale * (QMIN - offset)
    v = torch.where(above, high, torch.where(below, low, x))
    passing = v + scale * (torch.round(v / scale) - v / scale).detach()
    return passing + ((codes - offset) * scale - passing).detach()


def against_autograd(elements: int) -> list[Contest]:
    x = torch.randn(elements, requires_grad=True)
    high, low = torch.tensor(2.5, requires_grad=True), torch.tensor(-1.5, requires_grad=True)
    grad, learnt = torch.randn(elements), (x, high, low)

    def ours() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(ulq(*learnt)[0], learnt, grad)

    def eager() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(eager_ulq(*learnt), learnt, grad)

    gradients, expected = ours(), eager()
    require_equal("gradient of ulq", gradients[0], expected[0])
    # The eager sums of the clips are float32.
    torch.testing.assert_close(gradients[1:], expected[1:], rtol=1e-3, atol=1e-2)
    name = f"ulq {elements / 2**20:.3g}M, both ways"
    return [Contest(name, ours, {"autograd": eager})]


# ---- measurement ----


def milliseconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1e3


def measure(contest: Contest, repeats: int) -> list[Timing]:
    """Medians over rounds in which every candidate runs once."""
    candidates = {"": contest.ours, **contest.others}
    for function in candidates.values():
        function()
    rounds = [{k: milliseconds(f) for k, f in candidates.items()} for _ in range(repeats)]
    median = {key: statistics.median(times[key] for times in rounds) for key in candidates}
    return [Timing(contest.name, other, median[""], median[other]) for other in contest.others]


def print_table(timings: list[Timing]) -> None:
    print(f"{'op':<26} {'against':<22} {'ours ms':>9} {'other ms':>9} {'other/ours':>10}")
    for t in timings:
        print(f"{t.name:<26} {t.other:<22} {t.ours_ms:9.2f} {t.other_ms:9.2f} {t.ratio:9.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the sizes (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    contests = [
        *against_torch(int(options.scale * 2**24), channels=256),
        *against_autograd(int(options.scale * 2**24)),
        *against_search(int(options.scale * 2**22)),
    ]
    timings = [timing for contest in contests for timing in measure(contest, options.repeats)]
    print_table(timings)
    if options.json:
        rows = [{**asdict(timing), "ratio": timing.ratio} for timing in timings]
        options.json.write_text(json.dumps({"machine": facts, "timings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
