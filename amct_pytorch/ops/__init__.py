"""Quantization ops: typed functions over the registered ops of the namespace `amct_pytorch`."""

from .ada_round import ada_round, ada_round_start, ada_round_undecided
from .ada_scale import ada_scale
from .arq import arq, arq_fake_quantize, arq_fake_quantize_scale
from .dmq import dmq_factor
from .fake_quantize import dequantize, fake_quantize, quantize
from .hfmg import hfmg
from .ifmr import ifmr
from .quantization_errors import quantization_errors
from .shift import search_shift, shift_errors, shift_of_errors
from .similarity import Similarity, similarity
from .ulq import ulq, ulq_factors
from .ulq_scale import ulq_scale

__all__ = [
    "Similarity",
    "ada_round",
    "ada_round_start",
    "ada_round_undecided",
    "ada_scale",
    "arq",
    "arq_fake_quantize",
    "arq_fake_quantize_scale",
    "dequantize",
    "dmq_factor",
    "fake_quantize",
    "hfmg",
    "ifmr",
    "quantization_errors",
    "quantize",
    "search_shift",
    "shift_errors",
    "shift_of_errors",
    "similarity",
    "ulq",
    "ulq_factors",
    "ulq_scale",
]
