"""DMQ balancing of a model: probes that find the factors, and weights and inputs that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..config.layer import LayerConfig
from ..graph.facts import ModelFacts
from ..layers.dmq import (
    BalancedLayer,
    BalanceProbe,
    Balancing,
    balanced_weight,
    inverse_factors,
)
from ..layers.replace import replace_module
from ..records import LayerRecord, Records
from .insert import RecordKeeper

Balance = Mapping[str, tuple[float, ...]]  # layer -> factor of each input channel


@dataclass
class BalanceKeeper(RecordKeeper):
    """Writes the factors to the record file when all are known, and until then the progress."""

    calibration: Balancing

    def records(self) -> Records:
        balancing = self.calibration
        layers = {
            name: LayerRecord(tensor_balance_factor=balancing.balance[name])
            for name in ({} if balancing.unfinished else balancing.seen)
        }
        return Records(layers, balancing.unfinished, self.path)


def balanced_layers(layers: Mapping[str, LayerConfig]) -> dict[str, float]:
    """The migration strength of the layers that are to be balanced."""
    asked = {name: config.dmq_balancer_param for name, config in layers.items()}
    return {name: strength for name, strength in asked.items() if strength is not None}


def insert_probes(model: nn.Module, strengths: Mapping[str, float], batch_num: int) -> Balancing:
    """Puts a `BalanceProbe` in the place of every layer of `strengths`, in place."""
    balancing = Balancing(batch_num)
    for name, strength in strengths.items():
        module = model.get_submodule(name)
        replace_module(model, module, BalanceProbe(name, module, strength, balancing))
    return balancing


@torch.no_grad()
def balance_weights(model: nn.Module, balance: Balance) -> None:
    """Multiplies the weights of the layers of `balance` by their factors, in their memory."""
    for name, factors in balance.items():
        module: Any = model.get_submodule(name)
        module.weight.copy_(balanced_weight(name, module, factors))


def balance_inputs(model: nn.Module, balance: Balance) -> None:
    """Lets the layers of `balance`, or what stands for them, run on balanced inputs, in place."""
    for name, factors in balance.items():
        module = model.get_submodule(name)
        inverse = inverse_factors(name, module, factors)
        replace_module(model, module, BalancedLayer(name, module, inverse))


def with_balance(weights: Mapping[str, LayerRecord], balance: Balance) -> dict[str, LayerRecord]:
    """The records with the factors, those of balanced layers first, as the file has them."""
    balanced = {n: replace(weights[n], tensor_balance_factor=f) for n, f in balance.items()}
    return balanced | {n: record for n, record in weights.items() if n not in balance}


def balance_of(records: Records) -> dict[str, tuple[float, ...]]:
    """The factors of the layers that are balanced."""
    factors = {name: record.tensor_balance_factor for name, record in records.items()}
    return {name: own for name, own in factors.items() if own}


def load_balance(
    record_file: str, facts: ModelFacts, layers: Mapping[str, LayerConfig]
) -> dict[str, tuple[float, ...]]:
    """The factors that `record_file` has for those of `layers` that are to be balanced.

    Raises RuntimeError, with what is to be done, if the file is missing or does not parse, or has
    not one factor within (2^-23, 2^23) for each input channel of each layer.
    """
    names = balanced_layers(layers)
    if not names:
        return {}
    try:
        records = Records.load(record_file)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"{error}; {_ADVICE}") from error
    balance = {}
    for name in names:
        channels = facts.layers[name].in_channels
        factors = records[name].tensor_balance_factor if name in records else ()
        where = f'{record_file}: layer "{name}": tensor_balance_factor'
        if len(factors) != channels:
            raise RuntimeError(
                f"{where}: expected one for each of {channels} input channels, found "
                f"{len(factors)}; {_ADVICE}"
            )
        if outside := [f for f in factors if not _SMALLEST < f < 1 / _SMALLEST]:
            raise RuntimeError(
                f"{where}: expected {_SMALLEST:g} to {1 / _SMALLEST:g}, got {outside[0]}; {_ADVICE}"
            )
        balance[name] = factors
    return balance


_SMALLEST = 2.0**-23
_ADVICE = (
    "the configuration has dmq_balancer_param: run quantize_preprocess and its model on batch_num "
    "batches first"
)
