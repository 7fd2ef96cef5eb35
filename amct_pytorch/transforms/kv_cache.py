"""Puts stand-ins that watch key and value caches into a model and keeps its record file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..config.kv_cache import KVCacheConfig
from ..layers.kv_cache import KVCalibratedLayer, KVCalibration, KVObserver
from ..layers.replace import replace_module
from ..records import Records
from .insert import RecordKeeper


@dataclass
class KVRecordKeeper(RecordKeeper):
    """Writes the record file as calibration goes on; its entries hold KV-cache factors."""

    calibration: KVCalibration

    def records(self) -> Records:
        calibration = self.calibration
        in_order = {n: calibration.records[n] for n in calibration.seen if n in calibration.records}
        return Records({}, calibration.unfinished, self.path, in_order)


def insert_kv_calibration(model: nn.Module, config: KVCacheConfig) -> KVCalibration:
    """Puts a `KVCalibratedLayer` in the place of every layer of `config`, in place."""
    calibration = KVCalibration(config.batch_num)
    names = [name for name, _ in model.named_modules() if name in config.layers]
    for name in names:
        module, layer = model.get_submodule(name), config.layers[name]
        observer = KVObserver(
            name,
            layer.kv_data_quant_config,
            asymmetric=config.is_asymmetric(name),
            per_channel=layer.per_channel,
            batch_num=config.batch_num,
        )
        replace_module(model, module, KVCalibratedLayer(module, observer, calibration))
    return calibration
