"""What a layer cannot do of what a configuration asks for, and the reasons that all share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..capability import BY_KIND, KINDS, Capability
from ..graph import Layer
from .fields import Strict
from .problems import Problem, shown

ConfigT = TypeVar("ConfigT")  # of one layer
PartedT = TypeVar("PartedT", bound=Strict)


@dataclass(frozen=True)
class Refusal(Generic[ConfigT]):
    """One setting that a layer cannot have."""

    keys: tuple[str, ...]  # inside the layer's object
    found: object
    allowed: str
    reason: str
    without: ConfigT  # the same configuration with what the layer can do
    packing: bool = False  # of 4-bit weights, which a simplified configuration never insists on

    def problem(self, *location: str) -> Problem:
        """As a mistake of the configuration; `location` comes before the keys."""
        text = f"expected {self.allowed}, got {shown(self.found)}: {self.reason}"
        return Problem((*location, *self.keys), text)


Limits = Callable[[ConfigT, Layer], Iterator[Refusal[ConfigT]]]  # all that a layer cannot have


def with_part(config: PartedT, part: str, **changes: object) -> PartedT:
    """`config` with other values in its object `part`."""
    changed = getattr(config, part).model_copy(update=changes)
    return config.model_copy(update={part: changed})


def types_that(can: Callable[[Capability], bool]) -> str:
    """The names of the layer types whose capability `can` accepts.

    >>> types_that(lambda capability: capability.fusion)
    'Conv1d, Conv2d, Conv3d'
    """
    return ", ".join(kind for kind in KINDS if can(BY_KIND[kind]))


def why_not_int16(layer: Layer) -> str:
    """Why activations cannot have 16 bits, or an empty text."""
    if not BY_KIND[layer.kind].int16:
        types = types_that(lambda c: c.int16)
        return f"16-bit activations are for {types}, not {layer.kind}"
    if layer.kind == "Linear" and not layer.has_bias:
        return "a Linear has 16-bit activations only with a bias, this one has none"
    return ""


def why_not_int4(layer: Layer) -> str:
    """Why activations cannot have 4 bits, or an empty text."""
    if BY_KIND[layer.kind].recurrent:
        return f"the operator of {layer.kind} has activations of 8 or 16 bits"
    if layer.bias_added:
        return (
            "4-bit activations have no form where the bias is an addition behind a MatMul, which "
            "it is for inputs of 3 or 4 dimensions"
        )
    return ""


def why_not_channel_wise(layer: Layer) -> str:
    """Why weights cannot have one scale per channel, or an empty text."""
    if BY_KIND[layer.kind].channel_wise:
        return ""
    types = types_that(lambda c: c.channel_wise)
    return f"one scale per channel is for {types}, not {layer.kind}"


def why_not_packed(layer: Layer) -> str:
    """Why 4-bit weights cannot be packed two by two, or an empty text."""
    if not BY_KIND[layer.kind].weights:
        return ""
    if layer.groups != 1:
        return f"4-bit weights need groups=1, this layer has groups={layer.groups}"
    if layer.in_channels % 2:
        return f"4-bit weights need an even number of inputs, this layer has {layer.in_channels}"
    if BY_KIND[layer.kind].recurrent and layer.out_channels % 2:
        size = layer.out_channels
        return f"4-bit weights need an even size of the hidden state, this layer has {size}"
    return ""
