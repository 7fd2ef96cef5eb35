"""Read-only facts about a model, from one capture: its layers, and why one cannot be quantized."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A module of a quantizable type."""

    name: str  # dotted path in named_modules()
    kind: str  # a key of capability.BY_KIND
    reason: str | None  # why it stays float whatever the configuration says; None: quantizable
    has_bias: bool = False
    groups: int = 1
    in_channels: int = 0  # 0 for AvgPool2d
    out_channels: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration and the verbs need to know about a model."""

    layers: dict[str, Layer]  # every module of a quantizable type, in named_modules() order
    modules: dict[str, str]  # every module path -> class name
