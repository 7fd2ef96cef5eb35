"""One CalibrationConfig of the simplified configuration, as the JSON object of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..float32 import shortest
from ..graph import Layer
from .activation_message import pair_field, read_algorithm
from .layer import KEYS, LayerConfig
from .limits import Refusal
from .problems import Problem
from .proto_text import decimal, if_set
from .ptq import with_defaults
from .section import Section

_ONEOFS = {
    "activation_quant_params": "acts_quant_algo",
    "weight_quant_params": "wts_quant_algo",
    "dmq_balancer_param": "tensor_balancer",
}


@dataclass(frozen=True)
class CalibrationSection(Section[LayerConfig]):
    """A CalibrationConfig message and where it is in the file."""

    layer_keys = KEYS

    default_asymmetric: bool

    @property
    def activation_algorithm(self) -> str:
        """The field that holds the activation parameters; IFMR where there is none."""
        return self.message.WhichOneof("acts_quant_algo") or "ifmr_quantize"

    @property
    def asymmetric(self) -> bool:
        """What the activation parameters say, else the default."""
        activation = getattr(self.message, self.activation_algorithm)
        says = activation.HasField("asymmetric")
        return bool(activation.asymmetric) if says else self.default_asymmetric

    def config(self, layer: Layer) -> LayerConfig:
        """The configuration of `layer`; raises ValidationError for a value that is wrong."""
        entry: dict[str, Any] = {"quant_enable": True}
        if algorithm := self.message.WhichOneof("acts_quant_algo"):
            fields = getattr(self.message, algorithm)
            entry["activation_quant_params"] = {
                **read_algorithm(algorithm, fields),
                "num_bits": {fields.INT8: 8, fields.INT16: 16}[fields.dst_type],
                **if_set(fields, "asymmetric"),
            }
        if algorithm := self.message.WhichOneof("wts_quant_algo"):
            read = _arq if algorithm == "arq_quantize" else _ada
            entry["weight_quant_params"] = read(getattr(self.message, algorithm))
        if self.message.HasField("dmq_balancer"):
            entry["dmq_balancer_param"] = decimal(self.message.dmq_balancer.migration_strength)
        return LayerConfig.model_validate(with_defaults(entry, layer, self.asymmetric))

    def problem(self, refusal: Refusal[LayerConfig]) -> Problem:
        """`refusal` as a mistake in this section."""
        problem = super().problem(refusal)
        if problem.location[-1] == "dst_type":
            return replace(problem, text=f"expected INT8, got INT16: {refusal.reason}")
        return problem

    def at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""
        part, *keys = problem.location
        algorithm = self.message.WhichOneof(_ONEOFS[str(part)])
        match keys[0] if keys else part:
            case "dmq_balancer_param":
                fields = ["migration_strength"]
            case "num_bits":
                fields = ["quant_bits" if part == "weight_quant_params" else "dst_type"]
            case "search_range" | "beta_range" as pair:
                fields = [pair_field(pair, tuple(keys[1:]))]
            case "wts_algo":
                fields = []
            case key:
                fields = [str(key)]
        return replace(problem, location=(*self.location, algorithm, *fields))


def _arq(message: Any) -> dict[str, Any]:
    return {"wts_algo": "arq_quantize", **_weight(message)}


def _ada(message: Any) -> dict[str, Any]:
    return {
        "wts_algo": "ada_quantize",
        "num_iteration": message.num_iteration,
        "reg_param": decimal(message.reg_param),
        "beta_range": shortest([message.beta_range_start, message.beta_range_end]),
        "warm_start": decimal(message.warm_start),
        **_weight(message),
    }


def _weight(message: Any) -> dict[str, Any]:
    bits = message.quant_bits if message.HasField("quant_bits") else 8
    return {"num_bits": bits, **if_set(message, "channel_wise")}
