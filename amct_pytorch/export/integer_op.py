"""What the integer operators of the exact execution share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
DOMAIN = "amct.integer"


class IntegerOp(OpRun):
    """An operator on integers, in a domain of its own."""

    op_domain = DOMAIN

    def _result(self, y: torch.Tensor, x: Array) -> tuple[Array]:
        return (int32(y.numpy()),)


def int32(sums: Array) -> NDArray[np.int32]:
    """Exact sums as the hardware holds them; OverflowError beyond int32."""
    if sums.size and float(np.abs(sums).max()) > 2**31 - 1:
        raise OverflowError("a sum of products leaves the int32 accumulator")
    return sums.astype(np.int32)


def quantized(x: Array, inverse: float, offset: float, bits: int) -> NDArray[np.float32]:
    """Codes in float32: x times the inverse scale, rounded, then the offset, then clipped."""
    half = np.float32(2 ** (bits - 1))
    codes = np.rint(x.astype(np.float32) * np.float32(inverse)) + np.float32(offset)
    clipped: NDArray[np.float32] = np.clip(codes, -half, half - 1)
    return clipped


def unpacked(weight: Array, axis: int, channels: int) -> NDArray[np.float64]:
    """Weights as float64; two INT4 codes a byte along `axis` when it is half as long as it must."""
    if weight.shape[axis] * 2 == channels:
        low, high = (weight.astype(np.int8) << 4) >> 4, weight.astype(np.int8) >> 4
        pairs = np.stack([low, high], axis=axis + 1)
        weight = pairs.reshape(*weight.shape[:axis], channels, *weight.shape[axis + 1 :])
    return weight.astype(np.float64)
