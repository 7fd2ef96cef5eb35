"""The options of `QuantCalibrationOp`: one dictionary, without a file and without layers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, ValidationError

from .fields import Strict, where
from .kv_layer import HfmgParams, IfmrParams, params_branch
from .layer import HFMG, IFMR
from .problems import fail, problems_of

BatchNum = Annotated[int, where(lambda n: n > 0, "an integer above 0")]
Granularity = Literal["per_tensor", "per_channel"]


class _Shared(Strict):
    batch_num: BatchNum = 1
    quant_granularity: Granularity = "per_tensor"
    num_bits: Annotated[int, where(lambda bits: bits == 8, "8")] = 8
    with_offset: bool = True  # for where `asymmetric` is not given

    @property
    def per_channel(self) -> bool:
        """Whether every index of the last dimension has its own factors."""
        return self.quant_granularity == "per_channel"


class OpIfmrConfig(IfmrParams, _Shared):
    """The options with IFMR."""


class OpHfmgConfig(HfmgParams, _Shared):
    """The options with HFMG."""


OpConfig = OpIfmrConfig | OpHfmgConfig


class _Arguments(Strict):
    quant_algo_params: Annotated[
        Annotated[OpIfmrConfig, Tag(IFMR)] | Annotated[OpHfmgConfig, Tag(HFMG)],
        Discriminator(params_branch),
    ]


_KEYS = {
    "": tuple(_Arguments.model_fields),
    IFMR: tuple(OpIfmrConfig.model_fields),
    HFMG: tuple(OpHfmgConfig.model_fields),
}


def read_op_params(params: dict[str, Any] | None) -> OpConfig:
    """The checked `params`; TypeError for a wrong type, RuntimeError for a wrong value or key.

    >>> read_op_params({"act_algo": "hfmg"}).batch_num
    1
    >>> read_op_params({"num_bits": 4})
    Traceback (most recent call last):
    RuntimeError: QuantCalibrationOp: quant_algo_params.num_bits: expected 8, got 4
    """
    try:
        return _Arguments.model_validate({"quant_algo_params": params or {}}).quant_algo_params
    except ValidationError as error:
        problems = problems_of(error, _KEYS)
    try:
        fail("QuantCalibrationOp", problems)
    except ValueError as error:
        raise RuntimeError(str(error)) from None
