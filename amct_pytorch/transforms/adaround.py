"""AdaRound of one layer: whether each weight goes up or down, learnt from the layer's output.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020): least
squares on the output of the layer and the activation function behind it, and a growing price on
weights that stay between up and down. What is kept is decided: every weight is on its grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.layer import AdaConfig
from ..graph.activation import Activation
from ..layers.integers import is_transposed
from ..layers.run import run_layer
from ..ops.ada_round import ada_round, ada_round_start, ada_round_undecided

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
EVALUATED_ROWS = 256  # at once, which bounds the memory
LEARNING_RATE = 1e-3
SEED = 0
_REPORTED = 50  # iterations between two looks at the loss, which wait for the device

Report = Callable[[int, float], None]  # iterations done since the last report, loss


@dataclass(frozen=True)
class Sample:
    """What the layer is called on, and what it is to give."""

    x: Tensor
    target: Tensor
    output_size: list[int] | None = None  # of a transposed convolution

    @property
    def shape(self) -> tuple[Any, ...]:
        """Samples of one shape can be mixed row by row."""
        size = None if self.output_size is None else tuple(self.output_size)
        return (self.x.shape[1:], self.target.shape[1:], size)


@dataclass(frozen=True)
class Reconstruction:
    """How a layer is quantized, and what comes out of it."""

    module: Any
    scale: Tensor  # [1] or [Cout]
    config: AdaConfig
    activation: Activation | None

    def soft(self, weight: Tensor, alpha: Tensor, hard: bool = False) -> Tensor:
        return ada_round(
            weight,
            alpha,
            self._scale,
            self.config.num_bits,
            self._axis,
            groups=self._groups,
            hard=hard,
        )

    def start(self, weight: Tensor) -> Tensor:
        return ada_round_start(weight, self._scale, self._axis, groups=self._groups)

    def loss(self, weight: Tensor, sample: Sample) -> Tensor:
        """The squared error, summed over channels, its mean over everything else."""
        bias = self.module.bias
        bias = None if bias is None else bias.detach().float()
        y = run_layer(self.module, sample.x, weight, bias, sample.output_size)
        if self.activation is not None:
            y = self.activation(y)
        return (y - sample.target).square().sum(1).mean()

    def prepared(self, sample: Sample) -> Sample:
        """In float32, the activation function applied to the target, rows in dimension 0."""
        x, target = sample.x.float(), sample.target.float()
        if isinstance(self.module, nn.Linear):
            x, target = x.flatten(0, -2), target.flatten(0, -2)
        if self.activation is not None:
            target = self.activation(target)
        return Sample(x, target, sample.output_size)

    @property
    def _scale(self) -> Tensor:
        return self.scale if self.config.channel_wise else self.scale.reshape(())

    @property
    def _axis(self) -> int | None:
        return int(is_transposed(self.module)) if self.config.channel_wise else None

    @property
    def _groups(self) -> int:
        grouped = self.config.channel_wise and is_transposed(self.module)
        return int(self.module.groups) if grouped else 1


def learn_rounding(
    name: str,
    layer: Reconstruction,
    weight: Tensor,
    nearest: Tensor,
    samples: list[Sample],
    report: Report,
) -> Tensor:
    """`weight` on the grid of the layer's scales, so rounded that its outputs suffer least.

    Args:
        name: of the layer, for messages.
        layer: the module, whose own weight plays no part, and its configuration.
        weight: in float.
        nearest: `weight` rounded to nearest, which is the result where nothing better is found.
        samples: inputs, and outputs before the activation function.
        report: told of the progress.

    Raises RuntimeError, naming the layer, where the loss is not finite.
    """
    if layer.config.num_iteration == 0 or not samples:
        return nearest
    groups = _by_shape([layer.prepared(sample) for sample in samples])
    with torch.autocast(weight.device.type, enabled=False), torch.enable_grad():
        learnt = _optimized(name, layer, weight.float(), groups, report).to(nearest.dtype)
    with torch.autocast(weight.device.type, enabled=False), torch.no_grad():
        before, after = (_total_loss(layer, w.float(), groups) for w in (nearest, learnt))
    text = "%s: AdaRound: the squared error of its output is %.4g, with nearest rounding %.4g%s"
    logger.info(text, name, after, before, "" if after < before else ", which is kept")
    return learnt if after < before else nearest


def _optimized(
    name: str, layer: Reconstruction, weight: Tensor, groups: list[Sample], report: Report
) -> Tensor:
    config = layer.config
    alpha = layer.start(weight).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=LEARNING_RATE)
    batches = _batches(groups, torch.Generator().manual_seed(SEED))
    done = 0
    for iteration in range(config.num_iteration):
        loss = layer.loss(layer.soft(weight, alpha), next(batches))
        if iteration >= config.warm_start * config.num_iteration:
            undecided = ada_round_undecided(alpha, _beta(config, iteration))
            loss = loss + config.reg_param * undecided
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if iteration + 1 - done == _REPORTED or iteration + 1 == config.num_iteration:
            value = loss.item()
            _check_finite(name, value, iteration)
            report(iteration + 1 - done, value)
            done = iteration + 1
    return layer.soft(weight, alpha.detach(), hard=True)


def _check_finite(name: str, loss: float, iteration: int) -> None:
    if not math.isfinite(loss):
        raise RuntimeError(
            f"{name}: AdaRound cannot go on: its loss is {loss} at iteration {iteration + 1}; "
            "look for NaN, infinite or very large values in the calibration data and in the "
            "layers before it, or give this layer wts_algo arq_quantize"
        )


def _beta(config: AdaConfig, iteration: int) -> float:
    """From the first of beta_range to the second, by half a cosine, after the warm start."""
    start, end = config.beta_range
    warm = config.warm_start * config.num_iteration
    t = (iteration - warm) / (config.num_iteration - warm)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * t))


def _total_loss(layer: Reconstruction, weight: Tensor, groups: list[Sample]) -> float:
    """The mean loss of a row, over all rows."""
    total, rows = 0.0, 0
    for group in groups:
        pairs = zip(*(_split(t, EVALUATED_ROWS) for t in (group.x, group.target)), strict=True)
        for x, target in pairs:
            loss = layer.loss(weight, Sample(x, target, group.output_size))
            total, rows = total + float(loss) * len(x), rows + len(x)
    return total / rows


def _by_shape(samples: list[Sample]) -> list[Sample]:
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.shape, []).append(sample)
    return [
        Sample(
            torch.cat([s.x for s in same]), torch.cat([s.target for s in same]), same[0].output_size
        )
        for same in groups.values()
    ]


def _batches(groups: list[Sample], generator: torch.Generator) -> Iterator[Sample]:
    """Batches of random rows, without end; every row comes once before one comes again."""
    while True:
        chunks = [
            (group, rows)
            for group in groups
            for rows in _split(torch.randperm(len(group.x), generator=generator), BATCH_SIZE)
        ]
        for index in torch.randperm(len(chunks), generator=generator).tolist():
            group, rows = chunks[index]
            rows = rows.to(group.x.device)
            yield Sample(group.x[rows], group.target[rows], group.output_size)


def _split(tensor: Tensor, size: int) -> list[Tensor]:
    return list(tensor.split(size))  # type: ignore[no-untyped-call]
