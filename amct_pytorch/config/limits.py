"""What one layer cannot do of what its configuration asks for, why, and what it can do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..capability import BY_KIND, PTQ_KINDS, Capability
from ..graph import Layer
from .layer import AdaConfig, ArqConfig, LayerConfig
from .problems import Problem, shown

C = TypeVar("C")  # the configuration of a layer
_ACT, _WTS = "activation_quant_params", "weight_quant_params"


@dataclass(frozen=True)
class Refusal(Generic[C]):
    """One setting that a layer cannot have."""

    keys: tuple[str, ...]  # inside the layer's object
    found: object
    allowed: str
    reason: str
    without: C  # the same configuration with what the layer can do

    def problem(self, *location: str) -> Problem:
        """As a mistake of the configuration; `location` comes before the keys."""
        text = f"expected {self.allowed}, got {shown(self.found)}: {self.reason}"
        return Problem((*location, *self.keys), text)


def types_that(can: Callable[[Capability], bool]) -> str:
    """The names of the layer types of post-training quantization whose capability `can` accepts.

    >>> types_that(lambda capability: capability.fusion)
    'Conv1d, Conv2d, Conv3d'
    """
    return ", ".join(kind for kind in PTQ_KINDS if can(BY_KIND[kind]))


def refusals(config: LayerConfig, layer: Layer) -> Iterator[Refusal[LayerConfig]]:
    """Every setting of `config` that `layer` cannot have."""
    can = BY_KIND[layer.kind]
    activation, weight = config.activation_quant_params, config.weight_quant_params

    if config.dmq_balancer_param is not None and not can.dmq:
        reason = f"{layer.kind} has no weights to balance with"
        without = config.model_copy(update={"dmq_balancer_param": None})
        found = config.dmq_balancer_param
        yield Refusal(("dmq_balancer_param",), found, "none", reason, without)
    if activation.num_bits == 16 and (reason := why_not_int16(layer, can)):
        without = _with(config, _ACT, num_bits=8)
        yield Refusal((_ACT, "num_bits"), 16, "4 or 8", reason, without)
    if activation.asymmetric and not can.asymmetric:
        reason = f"activations of {layer.kind} are symmetric"
        without = _with(config, _ACT, asymmetric=False)
        yield Refusal((_ACT, "asymmetric"), True, "false", reason, without)
    if isinstance(weight, AdaConfig) and not can.ada:
        reason = f"AdaRound is for {types_that(lambda c: c.ada)}, not {layer.kind}"
        without = config.model_copy(update={_WTS: ArqConfig(channel_wise=can.channel_wise)})
        yield Refusal((_WTS, "wts_algo"), weight.wts_algo, '"arq_quantize"', reason, without)
    elif weight.channel_wise and not can.channel_wise:
        types = types_that(lambda c: c.channel_wise)
        reason = f"one scale per channel is for {types}, not {layer.kind}"
        without = _with(config, _WTS, channel_wise=False)
        yield Refusal((_WTS, "channel_wise"), True, "false", reason, without)
    if reason := why_not_bits(weight.num_bits, layer, can):
        without = _with(config, _WTS, num_bits=8)
        yield Refusal((_WTS, "num_bits"), weight.num_bits, "8", reason, without)


def why_not_int16(layer: Layer, can: Capability) -> str:
    """Why `layer` cannot have 16-bit activations, or an empty text."""
    if not can.int16:
        types = types_that(lambda c: c.int16)
        return f"16-bit activations are for {types}, not {layer.kind}"
    if layer.kind == "Linear" and not layer.has_bias:
        return "a Linear has 16-bit activations only with a bias, this one has none"
    return ""


def why_not_bits(bits: int, layer: Layer, can: Capability) -> str:
    """Why `layer` cannot have weights of `bits`, or an empty text."""
    if bits in (6, 7) and not can.six_seven_bits:
        types = types_that(lambda c: c.six_seven_bits)
        return f"6- and 7-bit weights are for {types}, not {layer.kind}"
    if bits == 4 and can.weights:
        if layer.groups != 1:
            return f"4-bit weights need groups=1, this layer has groups={layer.groups}"
        if layer.in_channels % 2:
            return (
                f"4-bit weights need an even number of inputs, this layer has {layer.in_channels}"
            )
    return ""


def _with(config: LayerConfig, part: str, **changes: object) -> LayerConfig:
    changed = getattr(config, part).model_copy(update=changes)
    return config.model_copy(update={part: changed})
