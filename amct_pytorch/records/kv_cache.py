"""The quantization factors of the key or value cache that one layer fills."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import as_float32


@dataclass(frozen=True)
class KVCacheRecord:
    """One scale and offset for the tensor, or one of each for every index of its last dimension.

    Scales are rounded to float32, so that a record read back equals the one written.

    >>> KVCacheRecord((0.5, 0.25), (0, -3))
    KVCacheRecord(scale=(0.5, 0.25), offset=(0, -3))
    """

    scale: tuple[float, ...] = ()
    offset: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.offset):
            scales, offsets = len(self.scale), len(self.offset)
            raise ValueError(f"offset: expected as many as scale ({scales}), found {offsets}")
        object.__setattr__(self, "scale", as_float32(self.scale))
