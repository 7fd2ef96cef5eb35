"""Quantization ops: typed functions over the registered ops of the namespace `amct_pytorch`."""

from .arq import arq, arq_fake_quantize, arq_fake_quantize_scale
from .dmq import dmq_factor
from .fake_quantize import dequantize, fake_quantize, quantize
from .hfmg import hfmg
from .ifmr import ifmr
from .shift import search_shift, shift_errors, shift_of_errors
from .similarity import Similarity, similarity
from .ulq import ulq, ulq_factors
from .ulq_scale import ulq_scale

__all__ = [
    "Similarity",
    "arq",
    "arq_fake_quantize",
    "arq_fake_quantize_scale",
    "dequantize",
    "dmq_factor",
    "fake_quantize",
    "hfmg",
    "ifmr",
    "quantize",
    "search_shift",
    "shift_errors",
    "shift_of_errors",
    "similarity",
    "ulq",
    "ulq_factors",
    "ulq_scale",
]
