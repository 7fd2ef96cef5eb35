"""One section of the simplified configuration of QAT, as the JSON object of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..graph import Layer
from .problems import Problem
from .proto_text import decimal, if_set
from .retrain import with_defaults
from .retrain_layer import KEYS, RetrainLayerConfig
from .section import Section


@dataclass(frozen=True)
class RetrainSection(Section[RetrainLayerConfig]):
    """A message with the two fields of quantization, and where it is in the file."""

    layer_keys = KEYS

    shift_n: bool | None = None  # of an override

    @property
    def weight_algorithm(self) -> str:
        """The field that holds the weight parameters; ARQ where there is none."""
        weight = self.message.retrain_weight_quant_config
        return weight.WhichOneof("weights_retrain_algo") or "arq_retrain"

    def config(self, layer: Layer) -> RetrainLayerConfig:
        """The configuration of `layer`; raises ValidationError for a value that is wrong."""
        weight = getattr(self.message.retrain_weight_quant_config, self.weight_algorithm)
        entry = {
            "retrain_data_config": _ulq(self.message.retrain_data_quant_config.ulq_quantize),
            "retrain_weight_config": {
                "algo": self.weight_algorithm,
                "dst_type": _type(weight),
                **if_set(weight, "channel_wise"),
            },
            "shift_n": self.shift_n,
        }
        return RetrainLayerConfig.model_validate(with_defaults(entry, layer))

    def at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""
        part, key = problem.location
        if part == "retrain_data_config":
            clips = ["clip_max_min"] if key in ("clip_max", "clip_min") else []
            fields = ["retrain_data_quant_config", "ulq_quantize", *clips, key]
        else:
            fields = ["retrain_weight_quant_config", self.weight_algorithm]
            fields += [key] if key != "algo" else []
        return replace(problem, location=(*self.location, *fields))


def _ulq(message: Any) -> dict[str, Any]:
    clips = message.clip_max_min
    keys = ("clip_max", "clip_min") if message.HasField("clip_max_min") else ()
    return {
        **{key: decimal(getattr(clips, key)) for key in keys},
        **if_set(message, "fixed_min"),
        "dst_type": _type(message),
    }


def _type(message: Any) -> str:
    names = message.DESCRIPTOR.fields_by_name["dst_type"].enum_type.values_by_number
    return str(names[message.dst_type].name)
