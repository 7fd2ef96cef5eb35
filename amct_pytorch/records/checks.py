"""Whether one layer's factors are complete, in range and of the layer's shape."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .layer import LayerRecord

logger = logging.getLogger(__name__)

_Problem = tuple[str, str, type[Exception]]  # field, text, exception type
OpType = Literal["Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "LSTM", "GRU"]

MOST_SHIFT = 16
_EPSILON = float(np.finfo(np.float32).eps)
_TYPES = {
    "dst_type": ("INT4", "INT8"),
    "act_type": ("INT4", "INT8", "INT16"),
    "wts_type": ("INT4", "INT6", "INT7", "INT8"),
    "fakequant_precision_mode": ("DEFAULT", "FORCE_FP16_QUANT"),
}
_RECURRENT_TYPES = {
    "dst_type": ("INT8",),
    "act_type": ("INT8", "INT16"),
    "wts_type": ("INT4", "INT8"),
}
_PER_CHANNEL = ("Conv", "ConvTranspose", "LSTM", "GRU")
_ACCUMULATING = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # in int32: a shift is possible
_NO_BALANCE = ("AveragePool", "LSTM", "GRU")
_GATES = {"LSTM": 4, "GRU": 3}
_FACTORS = ("scale_d", "offset_d", "scale_w", "offset_w")
_HIDDEN_FACTORS = ("scale_h", "offset_h", "scale_r", "offset_r")  # of LSTM and GRU


@dataclass(frozen=True)
class RecordTarget:
    """The layer that a record must fit."""

    op_type: OpType
    channels: int  # output channels; of LSTM and GRU: rows of the weights, all gates in one
    in_channels: int


def mistake(
    source: str, layer: str, field: str, text: str, kind: type[Exception] = RuntimeError
) -> Exception:
    """The exception that says what is wrong with `field` of `layer` in the file `source`."""
    return kind(f'{source}: layer "{layer}": {field}: {text}')


def check_record(source: str, layer: str, record: LayerRecord, target: RecordTarget) -> None:
    """Raises RuntimeError or ValueError (see `Records.validate`) unless `record` fits `target`.

    >>> record = LayerRecord(0.1, 300, (0.2,), (0,), act_type="INT8", wts_type="INT8")
    >>> check_record("record.txt", "conv", record, RecordTarget("Conv", 4, 2))
    Traceback (most recent call last):
    ValueError: record.txt: layer "conv": offset_d: expected -128 to 127 (8 bits), got 300
    """

    for field, text, kind in _problems(record, target):
        raise mistake(source, layer, field, text, kind)
    if record.has_factors and not record.dst_type:
        for field in ("act_type",) if target.op_type == "AveragePool" else ("act_type", "wts_type"):
            if getattr(record, field) is None:
                text = '%s: layer "%s": %s: not in the record; taken as INT8'
                logger.warning(text, source, layer, field)


def _problems(record: LayerRecord, target: RecordTarget) -> Iterator[_Problem]:
    """What is wrong, in the order of the table: what is there, its types, lengths, ranges.

    The reader raises at the first one, so that a later check may rely on the earlier ones.
    """
    yield from _balance_problems(record.tensor_balance_factor, target)
    if not record.has_factors:
        return
    recurrent = target.op_type in _GATES
    for field in (*_FACTORS, *(_HIDDEN_FACTORS if recurrent else ())):
        if getattr(record, field) in (None, ()):
            text = "expected in every quantized layer, found none; calibrate until it is recorded"
            yield field, text, RuntimeError
    for field, allowed in (_TYPES | (_RECURRENT_TYPES if recurrent else {})).items():
        value = getattr(record, field)
        if value is not None and value not in allowed:
            yield field, f"expected {' or '.join(allowed)}, got {value!r}", RuntimeError
    if target.op_type == "AveragePool" and record.dst_type == "INT4":
        yield "dst_type", "expected INT8 for an AveragePool, got INT4", RuntimeError
    unwanted = () if target.op_type in _ACCUMULATING else ("shift_bit",)
    for field in (*unwanted, *(() if recurrent else _HIDDEN_FACTORS)):
        if getattr(record, field) not in (None, ()):
            yield field, f"expected none for {_a(target.op_type)}, found one", RuntimeError
    yield from _length_problems(record, target)
    yield from _range_problems(record)


def _balance_problems(factors: tuple[float, ...], target: RecordTarget) -> Iterator[_Problem]:
    field = "tensor_balance_factor"
    if factors and target.op_type in _NO_BALANCE:
        yield field, f"expected none for {_a(target.op_type)}, found one", RuntimeError
    if factors and len(factors) != target.in_channels:
        text = f"expected one per input channel ({target.in_channels}), found {len(factors)}"
        yield field, text, ValueError
    for factor in factors:
        if not _EPSILON <= factor <= 1 / _EPSILON:
            yield field, f"expected {_EPSILON:g} to {1 / _EPSILON:g}, got {factor}", ValueError


def _length_problems(record: LayerRecord, target: RecordTarget) -> Iterator[_Problem]:
    scales, offsets = len(record.scale_w), len(record.offset_w)
    if scales != offsets:
        yield "offset_w", f"expected as many as scale_w ({scales}), found {offsets}", RuntimeError
    fewest = _GATES.get(target.op_type, 1)
    allowed = {fewest, target.channels} if target.op_type in _PER_CHANNEL else {fewest}
    if scales not in allowed:
        expected = " or ".join(map(str, sorted(allowed)))
        text = f"expected {expected} for this {target.op_type}, found {scales}"
        yield "scale_w", text, RuntimeError
    for field in ("shift_bit", "scale_r", "offset_r"):  # those that must be are there already
        found = len(getattr(record, field))
        if found not in (0, scales):
            yield field, f"expected as many as scale_w ({scales}), found {found}", RuntimeError


def _range_problems(record: LayerRecord) -> Iterator[_Problem]:
    half = 1 << (record.act_bits - 1)
    for field, offset in (("offset_d", record.offset_d), ("offset_h", record.offset_h)):
        if not -half <= (offset or 0) < half:
            text = f"expected {-half} to {half - 1} ({record.act_bits} bits), got {offset}"
            yield field, text, ValueError
    for field, offsets in (("offset_w", record.offset_w), ("offset_r", record.offset_r)):
        for offset in offsets:
            if offset != 0:
                yield field, f"expected 0, got {offset}", ValueError
    for shift in record.shift_bit if any(record.shift_bit) else ():
        if not 1 <= shift <= MOST_SHIFT:
            text = f"expected 1 to {MOST_SHIFT}, or 0 for all, got {shift}"
            yield "shift_bit", text, ValueError
    for field in ("scale_d", "scale_w", "scale_h", "scale_r"):
        value = getattr(record, field)
        for scale in value if isinstance(value, tuple) else (value,):
            if scale is not None and not 0 < scale < math.inf:  # a NaN is not
                yield field, f"expected a finite number above 0, got {scale}", ValueError


def _a(op_type: str) -> str:
    return f"an {op_type}" if op_type in ("AveragePool", "LSTM") else f"a {op_type}"
