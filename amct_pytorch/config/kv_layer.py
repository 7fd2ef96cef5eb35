"""How the key or value cache that one layer fills is calibrated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from .fields import Strict, one_of
from .layer import ACT_ALGO, HFMG, IFMR, Bins, Percentile, SearchRange, SearchStep


class IfmrParams(Strict):
    """What IFMR is told; `asymmetric` None: as the rest of the configuration says."""

    act_algo: Annotated[Literal["ifmr"], ACT_ALGO] = "ifmr"
    max_percentile: Percentile = 0.999999
    min_percentile: Percentile = 0.999999
    search_range: SearchRange = (0.7, 1.3)
    search_step: SearchStep = 0.01
    asymmetric: bool | None = None


class HfmgParams(Strict):
    """What HFMG is told; `asymmetric` None: as the rest of the configuration says."""

    act_algo: Annotated[Literal["hfmg"], ACT_ALGO] = "hfmg"
    num_of_bins: Bins = 4096
    asymmetric: bool | None = None


KVParams = IfmrParams | HfmgParams
WORDS: dict[object, int] = {"per_tensor": 0, "per_channel": 1}  # the file has the numbers


def _number(value: object) -> object:
    return WORDS.get(value, value) if isinstance(value, str) else value


Granularity = Annotated[int, one_of(0, 1), BeforeValidator(_number)]


class KVIfmrConfig(IfmrParams):
    """The JSON object of a layer calibrated with IFMR."""

    quant_granularity: Granularity = 0


class KVHfmgConfig(HfmgParams):
    """The JSON object of a layer calibrated with HFMG."""

    quant_granularity: Granularity = 0


def params_branch(value: Any) -> str:
    """The branch of a union that `value` is for: IFMR unless it asks for HFMG."""
    if isinstance(value, dict):
        return HFMG if value.get("act_algo") == "hfmg" else IFMR
    return HFMG if isinstance(value, HfmgParams) else IFMR


class KVLayerConfig(Strict):
    """What the user wants for one layer."""

    kv_data_quant_config: Annotated[
        Annotated[KVIfmrConfig, Tag(IFMR)] | Annotated[KVHfmgConfig, Tag(HFMG)],
        Discriminator(params_branch),
    ] = KVIfmrConfig()

    @property
    def per_channel(self) -> bool:
        """Whether every index of the last dimension has its own factors."""
        return self.kv_data_quant_config.quant_granularity == 1


# The keys that each object may have, for messages about unknown ones.
KEYS = {
    "": tuple(KVLayerConfig.model_fields),
    IFMR: tuple(KVIfmrConfig.model_fields),
    HFMG: tuple(KVHfmgConfig.model_fields),
}
