"""Streaming statistics of a tensor that end in quantization factors."""

from .hfmg import HFMG
from .ifmr import IFMR

__all__ = ["HFMG", "IFMR"]
