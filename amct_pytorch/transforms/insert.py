"""Puts calibration stand-ins into a model and keeps its record file up to date."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..capability import is_recurrent
from ..config.layer import LayerConfig
from ..files import Content, write_files
from ..layers.calibrate import CalibratedLayer, Calibration, new_calibrator
from ..layers.calibrate_recurrent import CalibratedRecurrent
from ..layers.integers import to_half_precision
from ..layers.replace import replace_modules
from ..records import LayerRecord, Records

logger = logging.getLogger(__name__)

Files = Mapping[str, Content]  # by path


@dataclass
class RecordKeeper:
    """Writes the record file: how far calibration is after each forward, the factors at its end."""

    path: str
    weights: Mapping[str, LayerRecord]  # what is known before calibration
    calibration: Calibration
    with_record: Callable[[], Files] | None = None  # to write at the end, at once with the record
    _inside_forward: int = field(default=0, init=False)
    _complete: bool = field(default=False, init=False)

    def observed(self) -> None:
        """A layer has seen a batch."""
        if self._complete:
            return
        # Within a forward of the whole model one write at its end tells of all layers.
        if not self.calibration.unfinished or not self._inside_forward:
            self.write()

    def enter_forward(self, module: nn.Module, args: Any) -> None:
        self._inside_forward += 1

    def leave_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside_forward -= 1
        if self._inside_forward or self._complete:
            return
        if any(self.calibration.seen.values()):
            self.write()

    def write(self) -> None:
        records = self.records()
        finished = not records.progress
        others = self.with_record() if finished and self.with_record is not None else {}
        write_files({**others, self.path: records.dumps()}, warn_replaced=False)
        self._complete = finished
        if finished:
            self.with_record = None
            text = "%s is left float: %s (its weights stay rounded; skip it to keep them exact)"
            for name, reason in self.calibration.left_float.items():
                logger.warning(text, name, reason)

    def records(self) -> Records:
        return records_so_far(self.weights, self.calibration, self.path)


def records_so_far(
    weights: Mapping[str, LayerRecord], calibration: Calibration, source: str = "record"
) -> Records:
    """The factors of the weights and, of the layers that have seen enough, of the activations."""
    layers = {}
    for name, record in weights.items():
        if name in calibration.left_float:
            if record.tensor_balance_factor:  # its weights are balanced, so its input must be
                balance = record.tensor_balance_factor
                layers[name] = LayerRecord(tensor_balance_factor=balance)
            continue
        factors = calibration.factors.get(name)
        if factors is not None:
            scale, offset = _as_recorded(record, *factors)
            layers[name] = replace(record, scale_d=scale, offset_d=offset)
            if name in calibration.hidden:
                scale, offset = _as_recorded(record, *calibration.hidden[name])
                layers[name] = replace(layers[name], scale_h=scale, offset_h=offset)
        else:
            layers[name] = replace(record, act_type=None)
    return Records(layers, calibration.unfinished, source)


def _as_recorded(record: LayerRecord, scale: float, offset: int) -> tuple[float, int]:
    if record.force_fp16:
        scale = float(to_half_precision(torch.tensor(scale, dtype=torch.float32)))
    return scale, offset


def insert_calibration(
    model: nn.Module, layers: Mapping[str, LayerConfig], batch_num: int
) -> Calibration:
    """Puts a `CalibratedLayer` in the place of every layer of `layers`, in place."""
    calibration = Calibration(batch_num)
    stand_ins: dict[nn.Module, nn.Module] = {}
    for name, config in layers.items():
        module, settings = model.get_submodule(name), config.activation_quant_params
        new = partial(new_calibrator, settings, settings.num_bits, settings.asymmetric)
        if is_recurrent(module):
            stand_ins[module] = CalibratedRecurrent(name, module, new(), new(), calibration)
        else:
            stand_ins[module] = CalibratedLayer(name, module, new(), calibration)
    replace_modules(model, stand_ins)
    return calibration


def keep_record(model: nn.Module, keeper: RecordKeeper) -> None:
    """Lets `keeper` follow the forwards of `model`."""
    keeper.calibration.observed = keeper.observed
    model.register_forward_pre_hook(keeper.enter_forward)
    model.register_forward_hook(keeper.leave_forward, always_call=True)


def forget_record(model: nn.Module) -> None:
    """Undoes `keep_record` on a copy of the model."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), RecordKeeper):
                del hooks[key]
