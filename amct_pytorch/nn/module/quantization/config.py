"""The `config` dictionary of a single module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ....config.fields import ClipMax, ClipMin, Strict, where
from ....config.problems import fail, problems_of, wrong_value

_BITS = {"INT8": 8, "INT16": 16}


class _Settings(Strict):
    # Numbers in Python code may be written without a fraction.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Settings):
    """How the input is quantized."""

    dst_type: Literal["INT8", "INT16"] = "INT8"
    batch_num: Annotated[int, where(lambda n: n > 0, "an integer above 0")] = 1
    fixed_min: bool = False
    clip_max: ClipMax | None = None
    clip_min: ClipMin | None = None
    asymmetric: bool = True

    @model_validator(mode="after")
    def _both_or_none(self) -> DataConfig:
        if (self.clip_max is None) != (self.clip_min is None):
            raise wrong_value("both of clip_max and clip_min, or none")
        return self

    @property
    def num_bits(self) -> int:
        """8 or 16."""
        return _BITS[self.dst_type]

    @property
    def clips(self) -> tuple[float, float] | None:
        """(clip_max, clip_min) to start from, if they are given."""
        if self.clip_max is None or self.clip_min is None:
            return None
        return self.clip_max, self.clip_min


class WeightConfig(_Settings):
    """How the weight is quantized."""

    dst_type: Literal["INT8"] = "INT8"
    weights_retrain_algo: Literal["arq_retrain", "ulq_retrain"] = "arq_retrain"
    channel_wise: bool | None = None  # None: the default of the layer type
    s_rec_flag: bool = False  # the learned parameter is 1 / scale


class ModuleConfig(_Settings):
    """The whole dictionary."""

    retrain_enable: bool = True
    retrain_data_config: DataConfig = Field(default_factory=DataConfig)
    retrain_weight_config: WeightConfig = Field(default_factory=WeightConfig)


_PARTS = {
    "retrain_data_config": tuple(DataConfig.model_fields),
    "retrain_weight_config": tuple(WeightConfig.model_fields),
}
_KEYS = {"": tuple(ModuleConfig.model_fields), **_PARTS}


def read_config(source: str, config: Mapping[str, Any] | None) -> ModuleConfig:
    """The settings of a module; a value of None means the default.

    Raises TypeError if the dictionary or a part of it is none, ValueError for a key that is
    unknown and for a value that is wrong or of a wrong type.

    >>> read_config("Conv2dQAT", {"retrain_data_config": {"batch_num": 2}}).retrain_data_config
    DataConfig(dst_type='INT8', batch_num=2, fixed_min=False, clip_max=None, clip_min=None, \
asymmetric=True)
    """
    if config is None:
        return ModuleConfig()
    if not isinstance(config, Mapping):
        raise TypeError(f"{source}: config: expected a dict or None, got {type(config).__name__}")
    given = {key: _without_none(value) for key, value in config.items()}
    try:
        return ModuleConfig.model_validate(_without_none(given))
    except ValidationError as error:
        found = problems_of(error, _KEYS)
        parts = [(part,) for part in _PARTS if not isinstance(given.get(part), Mapping)]
        fail(f"{source}: config", [replace(p, wrong_type=p.location in parts) for p in found])


def _without_none(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: item for key, item in value.items() if item is not None}
