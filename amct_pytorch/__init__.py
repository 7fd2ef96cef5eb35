"""Quantization of trained PyTorch models for Ascend NPUs."""

from importlib.metadata import PackageNotFoundError, version

from . import calibrators, ops
from .logging import set_logging_level
from .ptq import create_quant_config, quantize_model, save_model
from .transforms.simulate import simulate_model

try:
    __version__ = version("amct_pytorch")
except PackageNotFoundError:  # a source tree that was built in place and not installed
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "calibrators",
    "create_quant_config",
    "ops",
    "quantize_model",
    "save_model",
    "set_logging_level",
    "simulate_model",
]
