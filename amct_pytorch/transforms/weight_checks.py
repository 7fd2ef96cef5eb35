"""What is said of weights before and while they are quantized."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..layers.finite import is_finite
from ..ops._checks import check_dtype

logger = logging.getLogger(__name__)


def check_values(name: str, values: Mapping[str, Tensor | None]) -> None:
    """Raises for a weight or bias of the layer `name` that cannot be quantized; see callers."""
    for key, value in values.items():
        if value is None:
            continue
        check_dtype(f"{name}: {key}", value)
        if not is_finite(value):
            first = (~torch.isfinite(value)).nonzero()[0].tolist()
            raise RuntimeError(
                f"{name}: the {key} has NaN or infinite values, the first at index {first}; "
                "repair the model, or skip the layer"
            )


def warn_of_tiny_channels(
    name: str, rows: Tensor, scale: Tensor, what: str = "output channels"
) -> None:
    """Rows whose range is under the floor get scale 1 and are quantized to zero."""
    if not (scale == 1.0).any():
        return
    largest = rows.float().abs().flatten(1).amax(1) if scale.dim() else rows.float().abs().amax()
    erased = ((scale == 1.0) & (largest > 0) & (largest < 0.5)).reshape(-1).nonzero().flatten()
    if erased.numel():
        where = f"in {what} {_some(erased.tolist())} " if scale.dim() else ""
        logger.warning(
            "%s: the weights %sare real but too small for a scale and become zero", name, where
        )


def _some(channels: list[int], limit: int = 8) -> str:
    shown = ", ".join(map(str, channels[:limit]))
    return shown if len(channels) <= limit else f"{shown} and {len(channels) - limit} more"
