"""The JSON object of one layer: activation and weight parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from .fields import ONLY_FLOAT, Strict, known, one_of, where
from .problems import wrong_type, wrong_value

MOST_CANDIDATES = 1 << 20  # that ifmr takes: more could not differ in float32


def _pair(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise wrong_type("a list of 2 numbers")
    if len(value) != 2:
        raise wrong_value("a list of 2 numbers")
    return tuple(value)


Pair = Annotated[tuple[float, float], BeforeValidator(_pair)]
Percentile = Annotated[float, where(lambda p: 0.5 < p <= 1, "a number above 0.5 and at most 1")]
Fraction = Annotated[float, where(lambda x: 0 < x < 1, "a number between 0 and 1, both excluded")]
ACT_ALGO = known("ifmr", "hfmg")
WTS_ALGO = known("arq_quantize", "ada_quantize")
ActivationBits = Annotated[int, one_of(4, 8, 16)]
WeightBits = Annotated[int, one_of(4, 6, 7, 8)]


class IfmrConfig(Strict):
    """Activation parameters for IFMR, which searches a scale around percentiles of the data."""

    num_bits: ActivationBits = 8
    max_percentile: Percentile = 0.999999
    min_percentile: Percentile = 0.999999
    search_range: Annotated[
        Pair, where(lambda r: 0 < r[0] < r[1], "[start, end] with 0 < start < end")
    ] = (0.7, 1.3)
    search_step: float = Field(default=0.01, validate_default=True)
    act_algo: Annotated[Literal["ifmr"], ACT_ALGO] = "ifmr"
    asymmetric: bool

    @field_validator("search_step")
    @classmethod
    def _fits_range(cls, step: float, info: ValidationInfo) -> float:
        if step <= 0:
            raise wrong_value("a number above 0")
        if "search_range" in info.data:
            # Decimals as printed: 1.3 - 0.7 is 0.6 there, and a step of 0.6 is allowed.
            start, end = (Decimal(repr(x)) for x in info.data["search_range"])
            if Decimal(repr(step)) > end - start:
                raise wrong_value(f"at most {end - start}, the width of search_range")
            least = (end - start) / MOST_CANDIDATES
            if Decimal(repr(step)) < least:
                raise wrong_value(f"at least {least:.3g}, for {MOST_CANDIDATES} candidates")
        return step


class HfmgConfig(Strict):
    """Activation parameters for HFMG, which searches a scale on a histogram."""

    num_bits: ActivationBits = 8
    act_algo: Annotated[Literal["hfmg"], ACT_ALGO] = "hfmg"
    asymmetric: bool
    num_of_bins: Annotated[int, one_of(1024, 2048, 4096, 8192)] = 4096


class ArqConfig(Strict):
    """Weight parameters for ARQ: scales from the largest weights."""

    num_bits: WeightBits = 8
    channel_wise: bool
    wts_algo: Annotated[Literal["arq_quantize"], WTS_ALGO] = "arq_quantize"


class AdaConfig(Strict):
    """Weight parameters for AdaRound: up or down is learnt for each weight."""

    num_bits: WeightBits = 8
    reg_param: Fraction = 0.01
    warm_start: Fraction = 0.2
    num_iteration: Annotated[int, where(lambda n: n >= 0, "an integer of at least 0")] = 10000
    beta_range: Annotated[
        Pair, where(lambda r: r[0] > r[1] > 0, "[start, end] with start > end > 0")
    ] = (20.0, 2.0)
    channel_wise: bool
    wts_algo: Annotated[Literal["ada_quantize"], WTS_ALGO] = "ada_quantize"


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
    dmq_balancer_param: Annotated[
        float | None,
        where(lambda s: s is None or 0.2 <= s <= 0.8, "a number from 0.2 to 0.8"),
        ONLY_FLOAT,
    ] = None
    activation_quant_params: Annotated[
        Annotated[IfmrConfig, Tag(IFMR)] | Annotated[HfmgConfig, Tag(HFMG)],
        Discriminator(_activation_branch),
    ]
    weight_quant_params: Annotated[
        Annotated[ArqConfig, Tag(ARQ)] | Annotated[AdaConfig, Tag(ADA)],
        Discriminator(_weight_branch),
    ]


# The keys that each object may have, for messages about unknown ones.
KEYS = {
    "": tuple(LayerConfig.model_fields),
    IFMR: tuple(IfmrConfig.model_fields),
    HFMG: tuple(HfmgConfig.model_fields),
    ARQ: tuple(ArqConfig.model_fields),
    ADA: tuple(AdaConfig.model_fields),
}
