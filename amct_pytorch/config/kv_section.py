"""One CalibrationConfig of the simplified KV-cache configuration, as a layer's JSON object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..graph import Layer
from .activation_message import pair_field, read_algorithm
from .kv_layer import KEYS, KVLayerConfig
from .problems import Problem
from .proto_text import if_set
from .section import Section


@dataclass(frozen=True)
class KVSection(Section[KVLayerConfig]):
    """A CalibrationConfig message and where it is in the file."""

    layer_keys = KEYS

    def config(self, layer: Layer) -> KVLayerConfig:
        """The configuration of any layer; raises ValidationError for a value that is wrong."""
        entry: dict[str, Any] = {}
        if algorithm := self.message.WhichOneof("acts_quant_algo"):
            fields = getattr(self.message, algorithm)
            entry["kv_data_quant_config"] = {
                **read_algorithm(algorithm, fields),
                "quant_granularity": fields.quant_granularity,
                **if_set(fields, "asymmetric"),
            }
        return KVLayerConfig.model_validate(entry)

    def at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""
        _, key, *inside = problem.location
        if key == "search_range":
            key = pair_field(key, tuple(inside))
        algorithm = self.message.WhichOneof("acts_quant_algo")
        return replace(problem, location=(*self.location, algorithm, key))
