"""Watching the tensors that go into a key or value cache, as a stand-in for the layer they are of.

What is watched is a layer's output: a projection's output is what the cache holds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config.kv_layer import KVParams
from ..ops._checks import check_dtype
from ..records import KVCacheRecord
from .base import AmctLayer
from .calibrate import Calibration, Calibrator, new_calibrator

logger = logging.getLogger(__name__)

BITS = 8  # of a quantized cache
_LEAST_SIGNAL = 0.5  # what scale 1 rounds to a code of its own


@dataclass
class KVCalibration(Calibration):
    """Progress of one model's KV-cache calibration, shared by its layers."""

    records: dict[str, KVCacheRecord] = field(default_factory=dict)  # of layers that are done


class KVObserver:
    """Shows the first `batch_num` tensors of one layer to a calibrator; those after are ignored.

    Per channel, every index of the last dimension has factors of its own; all come out of one call
    of the calibrator. IFMR then keeps the values while they are few and a sketch beyond, HFMG one
    histogram a channel, in host memory.
    """

    def __init__(
        self, name: str, params: KVParams, *, asymmetric: bool, per_channel: bool, batch_num: int
    ) -> None:
        self.name, self.batch_num, self.seen = name, batch_num, 0
        self._per_channel = per_channel
        axis = -1 if per_channel else None
        self._calibrator: Calibrator | None = new_calibrator(params, BITS, asymmetric, axis)

    def observe(self, x: object) -> KVCacheRecord | None:
        """Counts the tensor; the factors if it was the last one needed.

        Raises TypeError for what is no tensor of float32, float16 or bfloat16; RuntimeError, with
        the number of the batch, for values or a shape that cannot be calibrated: it does not count.
        """
        if self._calibrator is None:
            return None
        self._check(x)
        assert isinstance(x, Tensor)
        with torch.no_grad():
            try:
                self._calibrator.update(x)
                done = self.seen + 1 >= self.batch_num
                factors = self._calibrator.compute() if done else None
            except (RuntimeError, ValueError) as error:
                raise RuntimeError(f"{self._where()}: {error}") from error
        self.seen += 1
        if factors is None:
            return None
        self._calibrator = None
        self._warn_of_tiny(x, factors[0])
        scale, offset = (tuple(factor.reshape(-1).tolist()) for factor in factors)
        return KVCacheRecord(scale, offset)

    def _check(self, x: object) -> None:
        check_dtype(self.name, x)
        if self._per_channel and isinstance(x, Tensor) and x.dim() == 0:
            text = "expected at least one dimension to calibrate per channel, got a scalar"
            raise RuntimeError(f"{self._where()}: {text}")

    def _where(self) -> str:
        return (
            f"{self.name}: batch {self.seen + 1} of {self.batch_num}: the tensor for the KV cache "
            "cannot be calibrated"
        )

    def _warn_of_tiny(self, x: Tensor, scale: Tensor) -> None:
        # Ops give scale 1 to ranges under the floor; that must not erase a signal silently.
        if not (scale == 1).any():
            return
        largest = x.detach().abs().reshape(-1, scale.numel()).amax(0)  # one for each factor
        count = int(((scale == 1) & (largest > 0) & (largest < _LEAST_SIGNAL)).sum())
        if count:
            logger.warning(
                "%s: the values of %d of %d channels are real but below what a scale can express: "
                "their scale is 1, which makes them 0",
                self.name,
                count,
                scale.numel(),
            )


class KVCalibratedLayer(AmctLayer):
    """Runs the layer and shows its output to an observer; the output is the layer's own."""

    def __init__(
        self, sub_module: nn.Module, observer: KVObserver, calibration: KVCalibration
    ) -> None:
        super().__init__(observer.name)
        self.sub_module = sub_module
        self.observer = observer
        self.calibration = calibration
        calibration.seen[self.name] = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.sub_module(*args, **kwargs)
        if self.observer.seen < self.observer.batch_num:
            self._observe(output)
        return output

    def _observe(self, output: object) -> None:
        record = self.observer.observe(output)
        self.calibration.seen[self.name] = self.observer.seen
        if record is not None:
            self.calibration.records[self.name] = record
        if self.calibration.observed is not None:
            self.calibration.observed()
