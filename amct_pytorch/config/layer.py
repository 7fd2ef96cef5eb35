"""The JSON object of one layer: activation and weight parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)

from .fields import ONLY_FLOAT, Strict, known, limited, one_of, where
from .problems import wrong_type, wrong_value

MOST_CANDIDATES = 1 << 20  # that ifmr takes: more could not differ in float32


def _pair(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise wrong_type("a list of 2 numbers")
    if len(value) != 2:
        raise wrong_value("a list of 2 numbers")
    return tuple(value)


def _fits_range(step: float, info: ValidationInfo) -> float:
    if "search_range" in info.data:
        # Decimals as printed: 1.3 - 0.7 is 0.6 there, and a step of 0.6 is allowed.
        start, end = (Decimal(repr(x)) for x in info.data["search_range"])
        if Decimal(repr(step)) > end - start:
            raise wrong_value(f"at most {end - start}, the width of search_range")
        least = (end - start) / MOST_CANDIDATES
        if Decimal(repr(step)) < least:
            raise wrong_value(f"at least {least:.3g}, for {MOST_CANDIDATES} candidates")
    return step


# Of numbers above 0 wherever there is one; the order of the two is beyond a JSON Schema.
_PAIR_SCHEMA = {
    "type": "array",
    "items": {"type": "number", "exclusiveMinimum": 0},
    "minItems": 2,
    "maxItems": 2,
}
Pair = Annotated[tuple[float, float], BeforeValidator(_pair), WithJsonSchema(_PAIR_SCHEMA)]
SearchRange = Annotated[Pair, where(lambda r: 0 < r[0] < r[1], "[start, end] with 0 < start < end")]
# Of a model whose field before it is `search_range`.
SearchStep = Annotated[
    float,
    limited("a number above 0", exclusiveMinimum=0),
    AfterValidator(_fits_range),
    Field(validate_default=True),
]
Percentile = Annotated[
    float, limited("a number above 0.5 and at most 1", exclusiveMinimum=0.5, maximum=1)
]
Fraction = Annotated[
    float,
    limited("a number between 0 and 1, both excluded", exclusiveMinimum=0, exclusiveMaximum=1),
]
ACT_ALGO = known("ifmr", "hfmg")
WTS_ALGO = known("arq_quantize", "ada_quantize")
Bins = Annotated[int, one_of(1024, 2048, 4096, 8192)]
ActivationBits = Annotated[int, one_of(4, 8, 16)]
WeightBits = Annotated[int, one_of(4, 6, 7, 8)]


class IfmrConfig(Strict):
    """Activation parameters for IFMR, which searches a scale around percentiles of the data."""

    num_bits: ActivationBits = 8
    """Bits of a quantized activation; 16 for some types of layers."""
    max_percentile: Percentile = 0.999999
    """The largest value that counts is the one with this share of all values below it."""
    min_percentile: Percentile = 0.999999
    """The smallest value that counts is the one with this share of all values above it."""
    search_range: SearchRange = (0.7, 1.3)
    """First and last factor that is tried on these values; start is below end."""
    search_step: SearchStep = 0.01
    """From one factor to the next, at most the width of search_range."""
    act_algo: Annotated[Literal["ifmr"], ACT_ALGO] = "ifmr"
    """The algorithm; ifmr unless num_of_bins is given."""
    asymmetric: bool
    """Whether activations have an offset; activation_offset decides if this is left out."""


class HfmgConfig(Strict):
    """Activation parameters for HFMG, which searches a scale on a histogram."""

    num_bits: ActivationBits = 8
    """Bits of a quantized activation; 16 for some types of layers."""
    act_algo: Annotated[Literal["hfmg"], ACT_ALGO] = "hfmg"
    """The algorithm; hfmg if num_of_bins is given."""
    asymmetric: bool
    """Whether activations have an offset; activation_offset decides if this is left out."""
    num_of_bins: Bins = 4096
    """Bins of the histogram."""


class ArqConfig(Strict):
    """Weight parameters for ARQ: scales from the largest weights."""

    num_bits: WeightBits = 8
    """Bits of a quantized weight; 6 and 7 for Conv2d, 4 where two can share a byte."""
    channel_wise: bool
    """Whether each output channel has its own scale; the default depends on the layer's type."""
    wts_algo: Annotated[Literal["arq_quantize"], WTS_ALGO] = "arq_quantize"
    """The algorithm."""


class AdaConfig(Strict):
    """Weight parameters for AdaRound: up or down is learnt for each weight."""

    num_bits: WeightBits = 8
    """Bits of a quantized weight; 6 and 7 for Conv2d, 4 where two can share a byte."""
    reg_param: Fraction = 0.01
    """Weight of the term that drives every weight to one of its two neighbours."""
    warm_start: Fraction = 0.2
    """The part of the iterations that runs without this term."""
    num_iteration: Annotated[int, limited("an integer of at least 0", minimum=0)] = 10000
    """Steps of the optimizer for each layer."""
    beta_range: Annotated[
        Pair, where(lambda r: r[0] > r[1] > 0, "[start, end] with start > end > 0")
    ] = (20.0, 2.0)
    """First and last exponent of the term; start is above end."""
    channel_wise: bool
    """Whether each output channel has its own scale; the default depends on the layer's type."""
    wts_algo: Annotated[Literal["ada_quantize"], WTS_ALGO] = "ada_quantize"
    """The algorithm."""


# Names of the union branches; error messages show them.
IFMR, HFMG = 'act_algo "ifmr"', 'act_algo "hfmg"'
ARQ, ADA = 'wts_algo "arq_quantize"', 'wts_algo "ada_quantize"'


def _activation_branch(value: Any) -> str:
    if not isinstance(value, dict):
        return HFMG if isinstance(value, HfmgConfig) else IFMR
    algorithm = value.get("act_algo", "hfmg" if "num_of_bins" in value else "ifmr")
    return HFMG if algorithm == "hfmg" else IFMR


def _weight_branch(value: Any) -> str:
    if not isinstance(value, dict):
        return ADA if isinstance(value, AdaConfig) else ARQ
    return ADA if value.get("wts_algo") == "ada_quantize" else ARQ


ActivationConfig = IfmrConfig | HfmgConfig
WeightConfig = ArqConfig | AdaConfig


class LayerConfig(Strict):
    """What the user wants for one layer."""

    quant_enable: bool
    """Whether the layer is quantized; one without this key is not."""
    dmq_balancer_param: Annotated[
        Annotated[float, limited("a number from 0.2 to 0.8", minimum=0.2, maximum=0.8)] | None,
        ONLY_FLOAT,
    ] = None
    """How much of the spread of the activations moves into the weights; none if left out."""
    activation_quant_params: Annotated[
        Annotated[IfmrConfig, Tag(IFMR)] | Annotated[HfmgConfig, Tag(HFMG)],
        Discriminator(_activation_branch),
    ]
    """How the scale of the activations is found."""
    weight_quant_params: Annotated[
        Annotated[ArqConfig, Tag(ARQ)] | Annotated[AdaConfig, Tag(ADA)],
        Discriminator(_weight_branch),
    ]
    """How the weights are quantized."""


# The keys that each object may have, for messages about unknown ones.
KEYS = {
    "": tuple(LayerConfig.model_fields),
    IFMR: tuple(IfmrConfig.model_fields),
    HFMG: tuple(HfmgConfig.model_fields),
    ARQ: tuple(ArqConfig.model_fields),
    ADA: tuple(AdaConfig.model_fields),
}
