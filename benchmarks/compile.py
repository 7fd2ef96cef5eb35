"""Times blocks of models with quantizers in them inside torch.compile, against the plain formulas.

    python benchmarks/compile.py [--json FILE] [--repeats 9] [--threads 2] [--quick]

That the quantizers have the bits of the eager ops is checked before anything is timed. See
README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _timing import HEADER, Timing, measure, parser, print_table, start, timing_rows, write
from torch import Tensor, nn

from amct_pytorch.ops import arq_fake_quantize, ulq, ulq_scale

QMIN, QMAX = -128, 127


# ---- quantizers: of an input by its clips, of a weight by a scale for each output channel ----


@dataclass(frozen=True)
class Quantizers:
    """What a block does to the inputs and weights of its layers."""

    input: Callable[[Tensor, Tensor, Tensor], Tensor]  # x, clip_max, clip_min
    weight: Callable[[Tensor, Tensor], Tensor]  # weight, scale


def formula_ulq(x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """`ulq` in torch operations, the rounding detached; for clips on either side of zero."""
    scale = (high - low) / (QMAX - QMIN)
    offset = torch.round(QMIN - low / scale).detach()
    v = torch.maximum(torch.minimum(x, scale * (QMAX - offset)), scale * (QMIN - offset))
    codes = v / scale
    return (codes + (codes.round() - codes).detach()) * scale


def formula_lsq(x: Tensor, scale: Tensor) -> Tensor:
    """Learned step size quantization (Esser et al. 2020) by rows."""
    gradient = 1.0 / (x.numel() * QMAX / scale.numel()) ** 0.5
    scale = scale * gradient + (scale * (1 - gradient)).detach()
    shaped = scale.reshape(-1, *[1] * (x.dim() - 1))
    codes = (x / shaped).clamp(QMIN, QMAX)
    return (codes + (codes.round() - codes).detach()) * shaped


def formula_range(x: Tensor, _: Tensor) -> Tensor:
    """By the range of every row, the gradient passed straight through."""
    rows = x.detach().flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    scale = torch.where(high < -low, -low / -QMIN, high / QMAX)
    scale = scale.reshape(-1, *[1] * (x.dim() - 1))
    quantized = (x / scale).round().clamp(QMIN, QMAX) * scale
    return x + (quantized - x).detach()


def input_by_ulq(x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    return ulq(x, high, low)[0]


def weight_by_ulq(x: Tensor, scale: Tensor) -> Tensor:
    return ulq_scale(x, scale, axis=0)


def weight_by_arq(x: Tensor, _: Tensor) -> Tensor:
    return arq_fake_quantize(x, axis=0)


# By how the weight is quantized: ours, and its peer.
CONTESTS = {
    "learned scale": (
        Quantizers(input_by_ulq, weight_by_ulq),
        Quantizers(formula_ulq, formula_lsq),
    ),
    "range": (Quantizers(input_by_ulq, weight_by_arq), Quantizers(formula_ulq, formula_range)),
}


# ---- blocks ----


class Quantized(nn.Module):
    """A layer with its quantizers."""

    def __init__(self, layer: Any, quantizers: Quantizers) -> None:
        super().__init__()
        self.layer, self.quantizers = layer, quantizers
        scale = layer.weight.detach().flatten(1).abs().amax(1) / QMAX
        self.scale = nn.Parameter(scale)
        self.high, self.low = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(-3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.quantizers.input(x, self.high, self.low)
        weight = self.quantizers.weight(self.layer.weight, self.scale)
        if isinstance(self.layer, nn.Conv2d):
            return nn.functional.conv2d(x, weight, self.layer.bias, padding=self.layer.padding)
        return nn.functional.linear(x, weight, self.layer.bias)


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, channels: int, quantizers: Quantizers) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv, self.norm = Quantized(conv, quantizers), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.norm(self.conv(x)))


class TransformerBlock(nn.Module):
    """LayerNorm, attention, LayerNorm, two linear layers with a GELU between them."""

    def __init__(self, width: int, heads: int, quantizers: Quantizers) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        layers = [Quantized(nn.Linear(*size), quantizers) for size in sizes]
        self.qkv, self.out, self.up, self.down = layers

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.first(x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


def blocks(quick: bool) -> dict[str, tuple[Callable[[Quantizers], nn.Module], Tensor]]:
    """How a block is made, and its input."""
    channels, size, batch = (8, 8, 2) if quick else (64, 56, 32)
    width, heads, tokens, sentences = (16, 2, 9, 2) if quick else (384, 6, 196, 8)
    return {
        "convolution": (lambda q: ConvBlock(channels, q), torch.randn(batch, channels, size, size)),
        "transformer": (
            lambda q: TransformerBlock(width, heads, q),
            torch.randn(sentences, tokens, width),
        ),
    }


# ---- correctness ----


def check_bits(backend: str) -> None:
    """Values and gradients inside a compiled function are those of the eager ops."""
    x, weight = torch.randn(64, 999) * 2, torch.randn(64, 999)
    params = torch.tensor(3.0), torch.tensor(-3.0), torch.rand(64) * 0.05
    for ours, _ in CONTESTS.values():

        def step(x: Tensor, weight: Tensor, *p: Tensor, of: Quantizers = ours) -> list[Tensor]:
            return [of.input(x * 1.1, p[0], p[1]), of.weight(weight * 1.1, p[2])]

        results = []
        for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
            learnt = [t.clone().requires_grad_() for t in (x, weight, *params)]
            found = function(*learnt)
            grads = torch.autograd.grad(found, learnt, [x, weight], allow_unused=True)
            results.append([*found, *(g for g in grads if g is not None)])
        if not all(torch.equal(got, want) for got, want in zip(*results, strict=True)):
            raise SystemExit("the compiled quantizers have other bits than the eager ones")


# ---- measurement ----


def candidates(
    make: Callable[[Quantizers], nn.Module], quantizers: Quantizers, x: Tensor, backend: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A compiled block's forward, and forward with backward; every block has the same weights."""
    torch.manual_seed(0)
    block = make(quantizers)
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend=backend)
    learnt = list(block.parameters())
    source, grad = x.clone().requires_grad_(), torch.randn_like(x)

    def forward() -> Tensor:
        with torch.no_grad():
            return compiled(x)

    def both_ways() -> object:
        return torch.autograd.grad(compiled(source), [source, *learnt], grad, allow_unused=True)

    return forward, both_ways


def contests(quick: bool, repeats: int, backend: str) -> Iterator[tuple[str, dict[str, Timing]]]:
    """The name of a case and what its candidates took."""
    for block, (make, x) in blocks(quick).items():
        for weights, pair in CONTESTS.items():
            torch.compiler.reset()  # one function is compiled a few times only
            runs = [candidates(make, quantizers, x, backend) for quantizers in pair]
            for way, functions in zip(
                ("forward", "both ways"), zip(*runs, strict=True), strict=True
            ):
                named = dict(zip(("amct_pytorch", "formula"), functions, strict=True))
                yield f"{block}, {weights}, {way}", measure(named, repeats)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="small blocks, no code generated")
    options = arguments.parse_args()
    facts = start(options)
    backend = "eager" if options.quick else "inductor"
    check_bits(backend)
    rows: list[tuple[str, ...]] = []
    documents: list[dict[str, Any]] = []
    for case, timings in contests(options.quick, options.repeats, backend):
        rows += timing_rows(case, timings)
        documents += [{"case": case, **asdict(timing)} for timing in timings.values()]
    print_table(HEADER, rows)
    if options.json:
        write(options.json, facts, documents)


if __name__ == "__main__":
    main()
