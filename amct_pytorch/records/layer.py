"""The quantization factors of one layer, as the record file holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOATS = ("scale_d", "scale_w", "tensor_balance_factor", "scale_h", "scale_r")


@dataclass(frozen=True)
class LayerRecord:
    """The factors of one layer; None or an empty tuple: absent from the file.

    Factors are float32: they are rounded here, so that a record read back equals the one written.
    """

    # In the order of the field numbers, which is the order in the file.
    scale_d: float | None = None
    offset_d: int | None = None
    scale_w: tuple[float, ...] = ()
    offset_w: tuple[int, ...] = ()
    shift_bit: tuple[int, ...] = ()
    tensor_balance_factor: tuple[float, ...] = ()
    skip_fusion: bool | None = None
    dst_type: str | None = None
    act_type: str | None = None
    wts_type: str | None = None
    fakequant_precision_mode: str | None = None
    scale_h: float | None = None
    offset_h: int | None = None
    scale_r: tuple[float, ...] = ()
    offset_r: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in FLOATS:
            value = getattr(self, name)
            if isinstance(value, float | int | np.floating):
                object.__setattr__(self, name, float(np.float32(value)))
            elif value:
                object.__setattr__(self, name, as_float32(value))

    @property
    def act_bits(self) -> int:
        """Bits of the activation codes: of dst_type, else of act_type, else 8."""
        return _bits(self.dst_type or self.act_type)

    @property
    def wts_bits(self) -> int:
        """Bits of the weight codes: of dst_type, else of wts_type, else 8."""
        return _bits(self.dst_type or self.wts_type)

    @property
    def force_fp16(self) -> bool:
        """Whether the dequantization scale is truncated (fakequant_precision_mode)."""
        return self.fakequant_precision_mode == "FORCE_FP16_QUANT"

    @property
    def has_factors(self) -> bool:
        """Whether a quantization factor is present (a balance factor is none)."""
        numbers = (self.scale_d, self.offset_d, self.scale_h, self.offset_h)
        lists = (self.scale_w, self.offset_w, self.shift_bit, self.scale_r, self.offset_r)
        return any(n is not None for n in numbers) or any(lists)


def as_float32(values: Sequence[float]) -> tuple[float, ...]:
    """The float32 next to each of `values`.

    >>> as_float32([0.1])
    (0.10000000149011612,)
    """
    exact: list[float] = np.asarray(values, np.float32).astype(np.float64).tolist()
    return tuple(exact)


def _bits(type_name: str | None) -> int:
    return int((type_name or "INT8").removeprefix("INT"))
