"""One CalibrationConfig of the simplified KV-cache configuration, as a layer's JSON object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..float32 import shortest
from ..graph import Layer
from .kv_layer import KEYS, KVLayerConfig
from .problems import Problem
from .proto_text import decimal, if_set
from .section import Section


@dataclass(frozen=True)
class KVSection(Section[KVLayerConfig]):
    """A CalibrationConfig message and where it is in the file."""

    layer_keys = KEYS

    def config(self, layer: Layer) -> KVLayerConfig:
        """The configuration of any layer; raises ValidationError for a value that is wrong."""
        entry: dict[str, Any] = {}
        if algorithm := self.message.WhichOneof("acts_quant_algo"):
            read = _ifmr if algorithm == "ifmr_quantize" else _hfmg
            entry["kv_data_quant_config"] = read(getattr(self.message, algorithm))
        return KVLayerConfig.model_validate(entry)

    def at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""
        key = str(problem.location[1])
        if key == "search_range":
            index = int(problem.location[2]) if len(problem.location) > 2 else 0
            key = f"search_range_{('start', 'end')[index]}"
        algorithm = self.message.WhichOneof("acts_quant_algo")
        return replace(problem, location=(*self.location, algorithm, key))


def _ifmr(message: Any) -> dict[str, Any]:
    return {
        "act_algo": "ifmr",
        "max_percentile": decimal(message.max_percentile),
        "min_percentile": decimal(message.min_percentile),
        "search_range": shortest([message.search_range_start, message.search_range_end]),
        "search_step": decimal(message.search_step),
        **_common(message),
    }


def _hfmg(message: Any) -> dict[str, Any]:
    return {"act_algo": "hfmg", "num_of_bins": message.num_of_bins, **_common(message)}


def _common(message: Any) -> dict[str, Any]:
    return {"quant_granularity": message.quant_granularity, **if_set(message, "asymmetric")}
