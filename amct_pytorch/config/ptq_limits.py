"""What one layer cannot do of what post-training quantization is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from ..capability import BY_KIND
from ..graph import Layer
from .layer import AdaConfig, ArqConfig, LayerConfig
from .limits import (
    Refusal,
    types_that,
    why_not_channel_wise,
    why_not_int4,
    why_not_int16,
    why_not_packed,
    with_part,
)

_ACT, _WTS = "activation_quant_params", "weight_quant_params"


def refusals(config: LayerConfig, layer: Layer) -> Iterator[Refusal[LayerConfig]]:
    """Every setting of `config` that `layer` cannot have."""
    can = BY_KIND[layer.kind]
    activation, weight = config.activation_quant_params, config.weight_quant_params

    if config.dmq_balancer_param is not None and not can.dmq:
        reason = (
            f"balancing is for {types_that(lambda c: c.dmq)}, not {layer.kind}"
            if can.weights
            else f"{layer.kind} has no weights to balance with"
        )
        without = config.model_copy(update={"dmq_balancer_param": None})
        found = config.dmq_balancer_param
        yield Refusal(("dmq_balancer_param",), found, "none", reason, without)
    if activation.num_bits == 16 and (reason := why_not_int16(layer)):
        without = with_part(config, _ACT, num_bits=8)
        yield Refusal((_ACT, "num_bits"), 16, "4 or 8", reason, without)
    if activation.num_bits == 4 and (reason := why_not_int4(layer)):
        without = with_part(config, _ACT, num_bits=8)
        yield Refusal((_ACT, "num_bits"), 4, "8 or 16", reason, without)
    if activation.asymmetric and not can.asymmetric:
        reason = f"activations of {layer.kind} are symmetric"
        without = with_part(config, _ACT, asymmetric=False)
        yield Refusal((_ACT, "asymmetric"), True, "false", reason, without)
    if isinstance(weight, AdaConfig) and not can.ada:
        reason = f"AdaRound is for {types_that(lambda c: c.ada)}, not {layer.kind}"
        arq = ArqConfig(num_bits=weight.num_bits, channel_wise=can.channel_wise)
        without = config.model_copy(update={_WTS: arq})
        yield Refusal((_WTS, "wts_algo"), weight.wts_algo, '"arq_quantize"', reason, without)
    elif weight.channel_wise and (reason := why_not_channel_wise(layer)):
        without = with_part(config, _WTS, channel_wise=False)
        yield Refusal((_WTS, "channel_wise"), True, "false", reason, without)
    if weight.num_bits in (6, 7) and not can.six_seven_bits:
        types = types_that(lambda c: c.six_seven_bits)
        reason = f"6- and 7-bit weights are for {types}, not {layer.kind}"
        without = with_part(config, _WTS, num_bits=8)
        yield Refusal((_WTS, "num_bits"), weight.num_bits, "8", reason, without)
    if weight.num_bits == 4 and (reason := why_not_packed(layer)):
        without = with_part(config, _WTS, num_bits=8)
        yield Refusal((_WTS, "num_bits"), 4, "8", reason, without, packing=True)
