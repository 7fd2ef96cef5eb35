"""Quantization ops: typed functions over the registered ops of the namespace `amct_pytorch`."""

from .fake_quantize import dequantize, fake_quantize, quantize

__all__ = ["dequantize", "fake_quantize", "quantize"]
