"""The search on a torch model: one capture, one simulation whose layers are switched."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..config.ptq import QuantConfig
from ..layers.calibrate import Calibration
from ..layers.replay import Replay
from ..layers.simulate import Simulated
from ..records import Records
from ..steps import Prepared, follow_adaround, start_calibration
from ..transforms.dmq import balance_of, balanced_layers, insert_probes
from ..transforms.insert import records_so_far
from ..transforms.simulate import simulate_layers
from ..version import __version__
from .base import AccuracyBasedAutoCalibrationBase, Config
from .evaluator import AutoCalibrationEvaluatorBase
from .measure import Measured, measured, measuring
from .result import Trial
from .rounded import rounded_weights, with_rounded
from .sensitivity import SensitivityBase

logger = logging.getLogger(__name__)

LARGEST_REPLAY = 1 << 30  # bytes of calibration data that are kept


class ModelSearch(AccuracyBasedAutoCalibrationBase):
    """Calibrates copies of a prepared model; evaluates its simulation with layers switched."""

    def __init__(self, model: nn.Module, prepared: Prepared, *args: Any) -> None:
        super().__init__(list(prepared.config.enabled), *args)
        self.model = model  # the user's own
        self.prepared = prepared
        self.records = Records({})  # in use
        self.rounded: dict[str, Tensor] = {}  # weights of AdaRound, in use and of other layers
        self.simulation: nn.Module | None = None  # by the factors in use
        self.measured: dict[str, Measured] = {}
        self.left_float: dict[str, str] = {}  # layer -> why calibration has no factors for it
        self._layers: dict[str, Simulated] = {}
        self._used = ""  # the factors in use
        self._parsed: dict[str, Records] = {}  # by their text: parsing is slow
        self._replay = Replay(prepared.config.batch_num, LARGEST_REPLAY)

    def get_original_accuracy(self) -> Any:
        return self.evaluator.evaluate(self.model)

    def calibrate(self, roll_back_config: Config) -> str:
        model = copy.deepcopy(self.prepared.model)
        layers = {n: c for n, c in self.prepared.layers.items() if roll_back_config.get(n)}
        balance = self._balance()
        weights, calibration = start_calibration(model, self.prepared, layers, balance)
        rounded: dict[str, Tensor] = {}
        if calibration.float_weights:  # which AdaRound lets go when it is done
            names = list(calibration.float_weights)

            def keep(model: nn.Module) -> None:
                rounded.update((n, model.get_submodule(n).weight.detach()) for n in names)  # type: ignore[operator]

            self._replay = follow_adaround(model, self.prepared, weights, calibration, keep).replay
            self.evaluator.calibration(model)
        else:
            with self._replay.recording(model):
                self.evaluator.calibration(model)
        self._check_batches(calibration)
        known = {n: record for n, record in weights.items() if n in calibration.factors}
        self.left_float |= _reasons(calibration)
        records = records_so_far(
            known, Calibration(0, factors=calibration.factors, hidden=calibration.hidden)
        )
        factors = with_rounded(records.dumps(), rounded)
        self._parsed[factors] = records
        return factors

    def use(self, factors: str) -> None:
        if self.simulation is None or factors != self._used:
            self._used = factors
            self.records = self._records(factors) if factors else Records({})
            self.rounded = {
                **rounded_weights(self.first_factors, self.prepared.model),
                **rounded_weights(factors, self.prepared.model),
            }
            self.simulation = copy.deepcopy(self.prepared.model)
            # Layers without a record of their own can be told from the others, too: switched off.
            self._layers = simulate_layers(self.simulation, self.all_records(), self.rounded)

    def get_ranking_info(self) -> dict[str, float]:
        assert self.simulation is not None
        batch_num = self.prepared.config.batch_num
        with measuring(self._layers, self.sensitivity, batch_num) as seen:
            if self._replay.complete:
                self._replay.run(self.simulation)
            else:
                self.evaluator.calibration(self.simulation)
        self._replay = Replay(0)  # its data are not needed any more
        return self._ranked(measured(seen, self.sensitivity))

    def ranking_details(self) -> Any:
        layers = {name: asdict(seen) for name, seen in self.measured.items()}
        return {"layers": layers, "left_float": self.left_float}

    def restore_ranking(self, details: Any) -> dict[str, float]:
        self.left_float = details["left_float"]
        return self._ranked({name: Measured(**seen) for name, seen in details["layers"].items()})

    def roll_back_and_evaluate_model(self, roll_back_config: Config) -> Any:
        assert self.simulation is not None
        self.switch(roll_back_config)
        return self.evaluator.evaluate(self.simulation)

    def switch(self, roll_back_config: Config) -> None:
        """Quantizes these layers of the simulation and runs the others in float."""
        for name, layer in self._layers.items():
            # A layer that its own calibration left out is exported in float, so it runs so.
            layer.enabled = roll_back_config.get(name, False) and name in self.records

    def records_of(self, trial: Trial) -> Records:
        """The records of the layers that a trial quantized, by the factors in use."""
        return Records({name: r for name, r in self.records.items() if trial.config.get(name)})

    def all_records(self) -> Records:
        """The records in use and, for other layers, those of the first calibration."""
        first = self._records(self.first_factors) if self.first_factors else {}
        return Records({**first, **self.records})

    def same_factors(self, one: str, other: str, roll_back_config: Config) -> bool:
        layers = [name for name, enabled in roll_back_config.items() if enabled]
        first, second = self._records(one), self._records(other)
        if any(first.get(name) != second.get(name) for name in layers):
            return False
        model = self.prepared.model
        weights, others = rounded_weights(one, model), rounded_weights(other, model)
        return all(torch.equal(weights[n], others[n]) for n in layers if n in weights)

    def _balance(self) -> dict[str, tuple[float, ...]]:
        """The DMQ factors: from the first calibration, or found before it by one of their own."""
        if self.first_factors:
            return balance_of(self._records(self.first_factors))
        strengths = balanced_layers(self.prepared.layers)
        if not strengths:
            return {}
        model = copy.deepcopy(self.prepared.model)
        balancing = insert_probes(model, strengths, self.prepared.config.batch_num)
        self.evaluator.calibration(model)
        self._check_batches(balancing)
        return balancing.balance

    def _records(self, factors: str) -> Records:
        if factors not in self._parsed:
            self._parsed[factors] = Records.parse(factors)
        return self._parsed[factors]

    def _ranked(self, layers: dict[str, Measured]) -> dict[str, float]:
        self.measured = layers
        for name, reason in self.left_float.items():
            logger.warning("%s is left float: %s", name, reason)
        return {name: layers[name].score for name in self.layers if name in layers}

    def _check_batches(self, calibration: Calibration) -> None:
        ran, needed = max(calibration.seen.values(), default=0), calibration.batch_num
        if ran < needed:
            raise RuntimeError(
                f"{self.evaluator.name}.calibration: expected at least {needed} batches (batch_num "
                f"of the configuration), got {ran}; the layers {', '.join(calibration.seen)} have "
                "no factors; run the model on more batches, or lower batch_num"
            )


def _reasons(calibration: Calibration) -> dict[str, str]:
    """Why layers have no factors, though the model ran on all batches."""
    reasons = dict(calibration.left_float)
    for name, (seen, needed) in calibration.unfinished.items():
        if seen:
            reasons[name] = f"calibration reached it in {seen} of {needed} batches only"
        else:
            reasons[name] = "calibration never reached it"
    return reasons


def fingerprint(
    weights: str,
    config: QuantConfig,
    evaluator: AutoCalibrationEvaluatorBase,
    sensitivity: SensitivityBase,
) -> dict[str, Any]:
    """What the results of a search depend on, for its journal; `weights` is a `digest`."""
    return {
        "model weights": weights,
        "config": json.loads(config.dumps()),
        "evaluator": full_name(evaluator),
        "evaluator version": str(evaluator.version),
        "sensitivity": full_name(sensitivity),
        "sensitivity of normalized data": bool(getattr(sensitivity, "do_normalization", False)),
        "amct_pytorch": __version__,
    }


def digest(model: nn.Module) -> str:
    """A hash of the structure, the settings that layers show and the weights of a model."""
    total = hashlib.sha256()
    for name, module in model.named_modules():
        total.update(f"{name}:{full_name(module)}({module.extra_repr()});".encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            total.update(f"{name}:{tensor.dtype}{list(tensor.shape)};".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def full_name(instance: object) -> str:
    """Module and name of the class of `instance`."""
    kind = type(instance)
    return f"{kind.__module__}.{kind.__qualname__}"
