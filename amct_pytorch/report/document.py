"""The report as one JSON document: what was found, by which evaluations, and what each layer is."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn

from ..capability import is_recurrent
from ..graph import Layer
from ..records import LayerRecord
from ..search.judgement import plain, shown
from ..search.measure import Measured
from ..search.model_search import ModelSearch, full_name
from ..search.result import AutoCalibrationResult, Trial
from ..version import __version__
from .states import layer_states
from .weights import weight_of, weight_sqnr


def describe_run(
    search: ModelSearch, winner: Trial | None, result: AutoCalibrationResult
) -> dict[str, Any]:
    """The document of a run that has ended."""
    layers = _layers(search, winner)
    document: dict[str, Any] = {
        "format": 1,
        "tool": {"name": "amct_pytorch", "version": __version__, "torch": torch.__version__},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": {
            "class": type(search.model).__name__,
            "parameters": sum(p.numel() for p in search.model.parameters()),
            "quantizable_layers": len(layers),
        },
        "outcome": _outcome(search, result, layers),
        "settings": _settings(search),
        "work": {
            "evaluations": result.evaluations,
            "planned_evaluations": search.planned_evaluations,
            "calibrations": result.calibrations,
            "resumed": sum(trial.resumed for trial in result.trials),
            "seconds": result.seconds,
        },
        "fidelity": None if result.fidelity is None else asdict(result.fidelity),
        "layers": layers,
        "trials": [_trial(i, trial, winner) for i, trial in enumerate(result.trials, 1)],
        "files": result.files,
    }
    return {key: json_safe(value) for key, value in document.items()}


def json_safe(value: Any) -> Any:
    """`value` with NaN and infinity as None and what JSON does not know as text."""
    value = plain(value)
    if isinstance(value, dict):
        return {json_safe(str(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):  # bytes of a path that are no UTF-8 come as lone surrogates
        return value.encode(errors="replace").decode()
    if isinstance(value, Tensor):
        return f"tensor of shape {list(value.shape)}"
    return shown(value)


def _outcome(
    search: ModelSearch, result: AutoCalibrationResult, layers: list[dict[str, Any]]
) -> dict[str, Any]:
    quantized = [layer for layer in layers if layer["state"] == "quantized"]
    states = [layer["state"] for layer in layers]
    return {
        "satisfied": result.satisfied,
        "stopped_by": result.stopped_by,
        "summary": result.summary,
        "original_metric": result.original_metric,
        "final_metric": result.final_metric,
        "loss": result.loss,
        "quantized": len(quantized),
        "rolled_back": states.count("rolled back"),
        "left_float": states.count("left float") + states.count("disabled"),
        "macs": {"total": _sum(layers, "macs"), "quantized": _sum(quantized, "macs")},
        "weight_bytes": {
            "float": _sum(layers, "float_bytes"),
            "deploy": _sum(layers, "deploy_bytes"),
        },
    }


def _settings(search: ModelSearch) -> dict[str, Any]:
    return {
        "evaluator": full_name(search.evaluator.evaluator),
        "strategy": type(search.strategy).__name__,
        "sensitivity": type(search.sensitivity).__name__,
        "higher_score_is_better": search.higher_is_better,
        "recalibrate": search.options.recalibrate,
        "max_evaluations": search.options.max_evaluations,
        "max_seconds": search.options.max_seconds,
        "batch_num": search.prepared.config.batch_num,
    }


def _trial(index: int, trial: Trial, winner: Trial | None) -> dict[str, Any]:
    kind = "full" if not trial.rolled_back else "search"
    if trial is winner and trial.rolled_back and trial.calibrated:
        kind = "final"
    return {
        "index": index,
        "kind": kind,
        "rolled_back": trial.rolled_back,
        "quantized": len(trial.quantized),
        "metric": trial.metric,
        "satisfied": trial.satisfied,
        "loss": trial.loss,
        "seconds": trial.seconds,
        "recalibrated": trial.calibrated,
        "resumed": trial.resumed,
    }


def _layers(search: ModelSearch, winner: Trial | None) -> list[dict[str, Any]]:
    ranks = {name: rank for rank, (name, _) in enumerate(search.ranking, 1)}
    facts, records = search.prepared.facts.layers, search.all_records()
    return [
        {
            "name": name,
            "type": facts[name].kind,
            "state": state.state,
            "reason": state.reason,
            "rank": ranks.get(name),
            "score": search.scores.get(name),
            **_sizes(search, facts[name], state.state == "quantized"),
            **_factors(records.get(name)),
            **_losses(search.measured.get(name)),
            "weight_sqnr_db": _weight_sqnr(search, facts[name], records.get(name)),
        }
        for name, state in layer_states(search, winner).items()
    ]


def _sizes(search: ModelSearch, layer: Layer, quantized: bool) -> dict[str, Any]:
    module = search.prepared.model.get_submodule(layer.name)
    seen = search.measured.get(layer.name)
    weight = weight_of(module)
    config = search.prepared.config.layers.get(layer.name)
    bits = config.weight_quant_params.num_bits if config and weight is not None else None
    float_bytes = deploy_bytes = 0 if weight is None else weight.nbytes
    if quantized and bits and weight is not None:
        deploy_bytes = weight.numel() * bits // 8
    return {
        "weight_shape": None if weight is None else list(weight.shape),
        "output_shape": None if seen is None else seen.output_shape,
        "parameters": sum(p.numel() for p in module.parameters()),
        "macs": None if seen is None else _macs(module, layer.kind, seen),
        "float_bytes": float_bytes,
        "deploy_bytes": deploy_bytes,
        "act_bits": None if config is None else config.activation_quant_params.num_bits,
        "wts_bits": bits,
    }


def _macs(module: nn.Module, kind: str, seen: Measured) -> int:
    """Multiplications of one sample."""
    if kind == "AvgPool2d":
        return 0
    weight = weight_of(module)
    assert weight is not None
    if is_recurrent(module):
        steps = seen.output_shape[1 if module.batch_first else 0]
        return steps * weight.numel()
    shape = seen.input_shape if kind.startswith("ConvTranspose") else seen.output_shape
    return math.prod(shape[1:]) * math.prod(weight.shape[1:])


def _factors(record: LayerRecord | None) -> dict[str, Any]:
    if record is None:
        return {"scale_d": None, "offset_d": None, "scale_w": None, "channels": None}
    return {
        "scale_d": record.scale_d,
        "offset_d": record.offset_d,
        "scale_w": [min(record.scale_w), max(record.scale_w)] if record.wts_type else None,
        "channels": len(record.scale_w),
    }


def _losses(seen: Measured | None) -> dict[str, Any]:
    share = None if seen is None else seen.clipping_share
    return {
        "cosine": None if seen is None else seen.cosine,
        "sqnr_db": None if seen is None else seen.sqnr_db,
        "mse": None if seen is None else seen.mse,
        "max_abs": None if seen is None else seen.max_abs,
        "clipping_share": share,
        "rounding_share": None if share is None else 1.0 - share,
    }


def _weight_sqnr(search: ModelSearch, layer: Layer, record: LayerRecord | None) -> float | None:
    if record is None or record.wts_type is None:
        return None
    return weight_sqnr(search.prepared.model.get_submodule(layer.name), layer, record)


def _sum(layers: list[dict[str, Any]], key: str) -> int:
    return sum(layer[key] or 0 for layer in layers)
