"""The JSON object of one layer in quantization-aware training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .layer import Strict, known, where
from .problems import wrong_type, wrong_value

BITS = {"INT4": 4, "INT8": 8, "INT16": 16}
DataType = Annotated[Literal["INT4", "INT8", "INT16"], known(*BITS)]
# Types of the activations and of the weights that go together.
PAIRS = (("INT8", "INT8"), ("INT16", "INT8"), ("INT8", "INT4"), ("INT4", "INT4"))


def _fraction(value: object) -> object:
    if value is not None and not isinstance(value, float):
        raise wrong_type("a number with a fraction, like 1.0")
    return value


Above = Annotated[float, where(lambda c: c > 0, "a number above 0"), BeforeValidator(_fraction)]
Below = Annotated[float, where(lambda c: c < 0, "a number below 0"), BeforeValidator(_fraction)]


class DataConfig(Strict):
    """How the input of a layer is quantized."""

    algo: Annotated[Literal["ulq_quantize"], known("ulq_quantize")] = "ulq_quantize"
    clip_max: Above | None = None  # None: found by IFMR
    clip_min: Below | None = None
    fixed_min: bool | None = None  # None: decided from the graph
    dst_type: DataType = "INT8"

    @model_validator(mode="after")
    def _both_or_none(self) -> DataConfig:
        if (self.clip_max is None) != (self.clip_min is None):
            raise wrong_value("clip_max and clip_min together, or neither")
        return self

    @property
    def num_bits(self) -> int:
        """4, 8 or 16."""
        return BITS[self.dst_type]


class WeightConfig(Strict):
    """How the weight of a layer is quantized."""

    algo: Annotated[Literal["arq_retrain", "ulq_retrain"], known("arq_retrain", "ulq_retrain")] = (
        "arq_retrain"
    )
    channel_wise: bool
    dst_type: DataType = "INT8"

    @property
    def num_bits(self) -> int:
        """4 or 8."""
        return BITS[self.dst_type]


class RetrainLayerConfig(Strict):
    """What the user wants for one layer."""

    retrain_enable: bool = True
    retrain_data_config: DataConfig = Field(default_factory=DataConfig)
    retrain_weight_config: WeightConfig
    shift_n: bool | None = None  # None: as for the whole model


DATA, WEIGHT = "retrain_data_config", "retrain_weight_config"
LAYER_KEYS = tuple(RetrainLayerConfig.model_fields)
PART_KEYS: dict[str, tuple[str, ...]] = {
    DATA: tuple(DataConfig.model_fields),
    WEIGHT: tuple(WeightConfig.model_fields),
}
PRUNING = ("regular_prune_enable", "regular_prune_config")


def dumped(config: RetrainLayerConfig) -> dict[str, Any]:
    """The JSON object; what was left open is not written."""
    return config.model_dump(exclude_none=True)
