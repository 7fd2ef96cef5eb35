"""Streaming statistics of a tensor that end in quantization factors."""

from .ifmr import IFMR

__all__ = ["IFMR"]
