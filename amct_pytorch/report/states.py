"""What became of each layer, and why."""

from __future__ import annotations

from dataclasses import dataclass

from ..search.model_search import ModelSearch
from ..search.result import Trial


@dataclass(frozen=True)
class LayerState:
    """One of quantized, rolled back, left float, disabled."""

    state: str
    reason: str


def layer_states(search: ModelSearch, winner: Trial | None) -> dict[str, LayerState]:
    """The state of every layer of a quantizable type, in the order of the model."""
    facts, config = search.prepared.facts, search.prepared.config
    ranks = {name: rank for rank, (name, _) in enumerate(search.ranking, 1)}
    states = {}
    for name, layer in facts.layers.items():
        if layer.reason is not None:
            states[name] = LayerState("left float", layer.reason)
        elif name not in config.enabled:
            states[name] = LayerState("disabled", "the configuration does not enable it")
        elif name not in ranks:
            reason = search.left_float.get(name, "calibration gave no factors for it")
            states[name] = LayerState("left float", reason)
        elif winner is None or not winner.config[name]:
            rank = f"sensitivity rank {ranks[name]} of {len(ranks)}"
            states[name] = LayerState("rolled back", f"{rank}; {_why(search, winner)}")
        else:
            states[name] = LayerState("quantized", _why_quantized(winner))
    return states


def _why(search: ModelSearch, winner: Trial | None) -> str:
    if winner is None:
        return "no model with a quantized layer satisfies"
    wider = [t for t in search.trials if set(t.quantized) > set(winner.quantized)]
    closest = min(wider, key=lambda t: len(t.quantized), default=None)
    if closest is None:
        return "the strategy put it back"
    number = search.trials.all.index(closest) + 1
    loss = "" if closest.loss is None else f" (loss {closest.loss:.6g})"
    verdict = "satisfied" if closest.satisfied else "did not satisfy"
    count = len(closest.rolled_back)
    layers = f"{count} layers in float" if count > 1 else "1 layer in float"
    return f"with {layers if count else 'all quantized'}, trial {number} {verdict}{loss}"


def _why_quantized(winner: Trial) -> str:
    return "the metric satisfies with it" if winner.satisfied else "part of the best model so far"
