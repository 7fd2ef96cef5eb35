"""One pass over the data for the scores of all layers: float output beside quantized output.

The model runs in float. Each layer also computes its quantized output from the same input, and
sums over both are taken in float64 on their device; a few numbers per layer and batch remain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..layers.simulate import Simulated
from ..ops.quantization_errors import quantization_errors
from ..ops.similarity import Similarity, from_sums, similarity_sums
from .judgement import is_number, plain
from .sensitivity import SensitivityBase, SimilaritySensitivity


@dataclass(frozen=True)
class Measured:
    """What was seen of one layer."""

    score: float  # of the sensitivity
    cosine: float  # these four: quantized output against float output, over all batches
    mse: float
    sqnr_db: float
    max_abs: float
    clipping_share: float | None  # of the input's squared error; None where there is no error
    input_shape: list[int]  # of the first batch
    output_shape: list[int]


@dataclass
class _Sums:
    """The sums of one layer so far."""

    input_shape: list[int]
    output_shape: list[int]
    outputs: list[tuple[Tensor, int]] = field(default_factory=list)  # (sums, elements) per batch
    lost: list[Tensor] = field(default_factory=list)  # quantization_errors of the inputs
    scores: list[float] = field(default_factory=list)  # of a sensitivity that compares arrays


@contextmanager
def measuring(
    layers: Mapping[str, Simulated], sensitivity: SensitivityBase, batch_num: int
) -> Iterator[dict[str, _Sums]]:
    """Switches `layers` off and observes each while the model runs, in its first `batch_num` calls.

    `measured` turns what this yields into numbers.
    """
    seen: dict[str, _Sums] = {}

    def observe(layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        x, output = layer.to_quantize(args, kwargs).detach(), _first(output)
        sums = seen.setdefault(layer.name, _Sums(list(x.shape), list(output.shape)))
        if len(sums.outputs) < batch_num:
            with torch.no_grad():
                quantized = _first(layer.quantized(*args, **kwargs))
                _add(sums, layer, x, output, quantized, sensitivity)

    was = {name: layer.enabled for name, layer in layers.items()}
    hooks = [layer.register_forward_hook(observe, with_kwargs=True) for layer in layers.values()]
    try:
        for layer in layers.values():
            layer.enabled = False
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.enabled = was[name]


def measured(seen: Mapping[str, _Sums], sensitivity: SensitivityBase) -> dict[str, Measured]:
    """The measures of the layers that were reached."""
    return {name: _finish(sums, sensitivity) for name, sums in seen.items()}


def _first(output: Any) -> Tensor:
    """The outputs of all steps, where a layer returns its last state too."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _add(
    sums: _Sums,
    layer: Simulated,
    x: Tensor,
    output: Tensor,
    quantized: Tensor,
    sensitivity: SensitivityBase,
) -> None:
    sums.outputs.append((similarity_sums(output, quantized), output.numel()))
    factors = layer.integers.to(x.device).factors
    sums.lost.append(quantization_errors(x, factors.scale_d, factors.offset_d, factors.act_bits))
    if not streams(sensitivity):
        # Copies: what compare() does to its arguments must not reach the layers behind.
        arrays = (t.reshape(-1).to("cpu", torch.float32, copy=True) for t in (output, quantized))
        sums.scores.append(_number(sensitivity.compare(*(a.numpy() for a in arrays)), sensitivity))


def _finish(sums: _Sums, sensitivity: SensitivityBase) -> Measured:
    counts = [count for _, count in sums.outputs]
    rows = torch.stack([s for s, _ in sums.outputs]).cpu()
    batches = [from_sums(row, n) for row, n in zip(rows.tolist(), counts, strict=True)]
    total = from_sums([*rows[:, :-1].sum(0).tolist(), float(rows[:, -1].max())], sum(counts))
    error, clipping = torch.stack(sums.lost).sum(0).tolist()
    return Measured(
        _score(sums, sensitivity, batches, total),
        *total,
        min(clipping / error, 1.0) if error > 0 else None,
        sums.input_shape,
        sums.output_shape,
    )


def _score(
    sums: _Sums, sensitivity: SensitivityBase, batches: Sequence[Similarity], total: Similarity
) -> float:
    if streams(sensitivity):
        assert isinstance(sensitivity, SimilaritySensitivity)
        return sensitivity.score(batches, total)
    return sum(sums.scores) / len(sums.scores)


def streams(sensitivity: SensitivityBase) -> bool:
    """Whether a sensitivity needs the sums only, not the outputs themselves."""
    return isinstance(sensitivity, SimilaritySensitivity) and sensitivity.streams


def _number(value: object, sensitivity: SensitivityBase) -> float:
    number = plain(value)
    if not is_number(number):
        kind = type(sensitivity).__name__
        raise TypeError(f"{kind}.compare: expected a number, got {type(value).__name__} {value!r}")
    return float(number)
