"""Metrics as JSON, so that an interrupted search can go on: plain values, tensors and arrays.

A metric may be any object. What has no exact form here raises `NotStorable`; its model is
evaluated again when the search is resumed.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch

LARGEST = 16_000_000  # bytes of tensors in one metric


class NotStorable(TypeError):  # noqa: N818
    """The metric has no exact form in JSON."""


def encode(metric: Any) -> Any:
    """A JSON value from which `decode` makes an equal metric of the same type.

    >>> encode((0.5, {"top1": 1}))
    {'tuple': [0.5, {'dict': [['top1', 1]]}]}
    """
    kind = type(metric)
    if metric is None or kind in (bool, int, str):
        return metric
    if kind is float:
        return metric if np.isfinite(metric) else {"float": repr(metric)}
    if kind in (tuple, list):
        return {kind.__name__: [encode(item) for item in metric]}
    if kind is dict:
        return {"dict": [[encode(key), encode(value)] for key, value in metric.items()]}
    if kind is torch.Tensor and metric.layout == torch.strided and metric.nbytes <= LARGEST:
        return {"tensor": _bytes(metric.detach())}
    tag = "array" if kind is np.ndarray else "scalar" if isinstance(metric, np.generic) else None
    if tag and metric.dtype.kind in "biuf" and metric.nbytes <= LARGEST:
        data = base64.b64encode(np.ascontiguousarray(metric).tobytes()).decode()
        return {tag: [metric.dtype.str, list(metric.shape), data]}
    raise NotStorable(f"{kind.__module__}.{kind.__qualname__}")


def decode(value: Any) -> Any:
    """The metric that `encode` wrote; ValueError, KeyError or TypeError for anything else."""
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    match tag:
        case "float":
            return float(content)
        case "tuple":
            return tuple(decode(item) for item in content)
        case "list":
            return [decode(item) for item in content]
        case "dict":
            return {decode(key): decode(item) for key, item in content}
        case "tensor":
            buffer = io.BytesIO(base64.b64decode(content))
            device = None if torch.cuda.is_available() else "cpu"  # None: where it was
            return torch.load(buffer, device, weights_only=True)
        case "array" | "scalar":
            dtype, shape, data = content
            array = np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
            return array if tag == "array" else array[()]
    raise ValueError(f"unknown tag {tag!r}")


def _bytes(tensor: torch.Tensor) -> str:
    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()
