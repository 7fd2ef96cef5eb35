"""One CalibrationConfig of the simplified configuration, as the JSON object of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from ..float32 import shortest
from ..graph import Layer
from .layer import KEYS, LayerConfig
from .limits import Refusal
from .problems import Problem, problems_of
from .ptq import with_defaults

_ONEOFS = {
    "activation_quant_params": "acts_quant_algo",
    "weight_quant_params": "wts_quant_algo",
    "dmq_balancer_param": "tensor_balancer",
}


@dataclass(frozen=True)
class Section:
    """A CalibrationConfig message and where it is in the file."""

    location: tuple[str | int, ...]
    message: Any

    @property
    def activation_algorithm(self) -> str:
        """The field that holds the activation parameters; IFMR where there is none."""
        return self.message.WhichOneof("acts_quant_algo") or "ifmr_quantize"

    @property
    def asymmetric(self) -> bool | None:
        """What the activation parameters say, if they do."""
        activation = getattr(self.message, self.activation_algorithm)
        return activation.asymmetric if activation.HasField("asymmetric") else None

    def problems(self) -> list[Problem]:
        """The values that are wrong for any layer."""
        try:
            self.config(Layer("", "Conv2d", None), asymmetric=False)
        except ValidationError as error:
            return [self._at(problem) for problem in problems_of(error, KEYS)]
        return []

    def config(self, layer: Layer, asymmetric: bool) -> LayerConfig:
        """The configuration of `layer`; `asymmetric` holds where the section does not say."""
        entry: dict[str, Any] = {"quant_enable": True}
        if algorithm := self.message.WhichOneof("acts_quant_algo"):
            read = _ifmr if algorithm == "ifmr_quantize" else _hfmg
            entry["activation_quant_params"] = read(getattr(self.message, algorithm))
        if algorithm := self.message.WhichOneof("wts_quant_algo"):
            read = _arq if algorithm == "arq_quantize" else _ada
            entry["weight_quant_params"] = read(getattr(self.message, algorithm))
        if self.message.HasField("dmq_balancer"):
            entry["dmq_balancer_param"] = _decimal(self.message.dmq_balancer.migration_strength)
        return LayerConfig.model_validate(with_defaults(entry, layer, asymmetric))

    def problem(self, refusal: Refusal[LayerConfig]) -> Problem:
        """`refusal` as a mistake in this section."""
        problem = self._at(refusal.problem())
        if problem.location[-1] == "dst_type":
            return replace(problem, text=f"expected INT8, got INT16: {refusal.reason}")
        return problem

    def _at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""
        part, *keys = problem.location
        algorithm = self.message.WhichOneof(_ONEOFS[str(part)])
        index = int(keys[1]) if len(keys) > 1 else 0
        match keys[0] if keys else part:
            case "dmq_balancer_param":
                fields = ["migration_strength"]
            case "num_bits":
                fields = ["quant_bits" if part == "weight_quant_params" else "dst_type"]
            case "search_range" | "beta_range" as pair:
                fields = [f"{pair}_{('start', 'end')[index]}"]
            case "wts_algo":
                fields = []
            case key:
                fields = [str(key)]
        return replace(problem, location=(*self.location, algorithm, *fields))


def _decimal(value: float) -> float:
    """0.01 for the float32 that a field with 0.01 holds."""
    return shortest([value])[0]


def _ifmr(message: Any) -> dict[str, Any]:
    return {
        "act_algo": "ifmr",
        "max_percentile": _decimal(message.max_percentile),
        "min_percentile": _decimal(message.min_percentile),
        "search_range": shortest([message.search_range_start, message.search_range_end]),
        "search_step": _decimal(message.search_step),
        **_activation(message),
    }


def _hfmg(message: Any) -> dict[str, Any]:
    return {"act_algo": "hfmg", "num_of_bins": message.num_of_bins, **_activation(message)}


def _activation(message: Any) -> dict[str, Any]:
    bits = {message.INT8: 8, message.INT16: 16}[message.dst_type]
    return {"num_bits": bits, **_if_set(message, "asymmetric")}


def _arq(message: Any) -> dict[str, Any]:
    bits = message.quant_bits if message.HasField("quant_bits") else 8
    return {"wts_algo": "arq_quantize", "num_bits": bits, **_if_set(message, "channel_wise")}


def _ada(message: Any) -> dict[str, Any]:
    return {
        "wts_algo": "ada_quantize",
        "num_iteration": message.num_iteration,
        "reg_param": _decimal(message.reg_param),
        "beta_range": shortest([message.beta_range_start, message.beta_range_end]),
        "warm_start": _decimal(message.warm_start),
        **_if_set(message, "channel_wise"),
    }


def _if_set(message: Any, field: str) -> dict[str, Any]:
    return {field: getattr(message, field)} if message.HasField(field) else {}
