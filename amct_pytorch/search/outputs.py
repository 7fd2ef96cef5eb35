"""The outputs of a model as plain tensors, and how near those of two models are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..ops.similarity import similarity

Outputs = tuple[tuple[Tensor, ...], ...]  # by batch, then by output
_DIRECT = (torch.float32, torch.float16, torch.bfloat16)  # the dtypes of `similarity`


def tensors_of(output: object) -> tuple[Tensor, ...]:
    """The tensors of a tensor, tuple, list or dict, nested as they may be; all else is left out.

    Raises TypeError if there is none.

    >>> tensors_of({"score": torch.tensor(1), "rest": [torch.tensor(2), "text", None]})
    (tensor(1), tensor(2))
    """
    if found := tuple(_walk(output)):
        return found
    raise TypeError(f"model: expected an output that holds tensors, got {type(output).__name__}")


def _walk(output: object) -> Iterator[Tensor]:
    match output:
        case Tensor():
            yield output
        case tuple() | list():
            for item in output:
                yield from _walk(item)
        case Mapping():
            yield from _walk(list(output.values()))


def likeness(original: Outputs, new: Outputs) -> float:
    """The mean over batches and outputs of how alike two tensors are, 1 for equal, or NaN.

    That is the cosine in 0..1 of `similarity` (0.5 at right angles) for floating and complex
    tensors, and the share of equal elements for integer and bool tensors. NaN gives NaN, and so
    does infinity, except in equal tensors. Raises ValueError if the shapes differ.

    >>> likeness(((torch.tensor([1.0, 0.0]),),), ((torch.tensor([0.0, 1.0]),),))
    0.5
    """
    if len(original) != len(new):
        raise ValueError(f"new_metric: expected {len(original)} batches, got {len(new)}")
    values = []
    for index, (first, second) in enumerate(zip(original, new, strict=True)):
        expected, got = ([tuple(x.shape) for x in batch] for batch in (first, second))
        if expected != got:
            raise ValueError(
                f"new_metric: batch {index}: expected outputs of shapes {expected}, got {got}"
            )
        values += [_alike(a, b) for a, b in zip(first, second, strict=True)]
    return math.fsum(values) / len(values)


def _alike(a: Tensor, b: Tensor) -> float:
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    discrete = not (a.is_floating_point() or b.is_floating_point())
    if a.dtype != b.dtype or (a.is_floating_point() and a.dtype not in _DIRECT):
        a, b = a.double(), b.double()  # torch.equal is not there for float8
    if torch.equal(a, b):  # never with NaN
        return 1.0
    if discrete:
        return (a == b).double().mean().item()
    if a.dtype == torch.float64:
        a, b = _direction(a), _direction(b)
    return similarity(a, b).cosine


def _direction(x: Tensor) -> Tensor:
    """A multiple of `x`, whose cosine is the same, within the range of float32."""
    largest = x.abs().max()
    return (x if largest == 0 else x / largest).float()
