"""The JSON object of one layer in quantization-aware training: how each part is quantized."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from .fields import ONLY_FLOAT, ClipMax, ClipMin, Strict
from .problems import wrong_value

_BITS = {"INT4": 4, "INT8": 8, "INT16": 16}


class RetrainDataConfig(Strict):
    """How activations are quantized: ULQ, whose clip values are learnt."""

    algo: Literal["ulq_quantize"] = "ulq_quantize"
    # Where the clip values start; found from the first batches if there are none.
    clip_max: Annotated[ClipMax, ONLY_FLOAT] | None = None
    clip_min: Annotated[ClipMin, ONLY_FLOAT] | None = None
    fixed_min: bool | None = None  # whether clip_min stays 0; None: decided from the graph
    dst_type: Literal["INT4", "INT8", "INT16"] = "INT8"

    @model_validator(mode="after")
    def _both_clips(self) -> RetrainDataConfig:
        if (self.clip_max is None) != (self.clip_min is None):
            raise wrong_value("clip_max and clip_min, or none of them")
        return self

    @property
    def num_bits(self) -> int:
        """The bits of a quantized activation."""
        return _BITS[self.dst_type]


class RetrainWeightConfig(Strict):
    """How weights are quantized: with ARQ, scales from the largest weights; with ULQ, learnt."""

    algo: Literal["arq_retrain", "ulq_retrain"] = "arq_retrain"
    channel_wise: bool
    dst_type: Literal["INT4", "INT8"] = "INT8"

    @property
    def num_bits(self) -> int:
        """The bits of a quantized weight."""
        return _BITS[self.dst_type]


class RetrainLayerConfig(Strict):
    """What the user wants for one layer."""

    retrain_enable: bool = True
    retrain_data_config: RetrainDataConfig = RetrainDataConfig()
    retrain_weight_config: RetrainWeightConfig
    shift_n: bool | None = None  # as the global key of this name; None: as that says


# The keys that each object may have, for messages about unknown ones.
KEYS = {
    "": tuple(RetrainLayerConfig.model_fields),
    "retrain_data_config": tuple(RetrainDataConfig.model_fields),
    "retrain_weight_config": tuple(RetrainWeightConfig.model_fields),
}
