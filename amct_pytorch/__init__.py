"""Quantization of trained PyTorch models for Ascend NPUs."""

from .logging import set_logging_level
from .ptq import create_quant_config, quantize_model, save_model
from .transforms.simulate import simulate_model

__all__ = [
    "create_quant_config",
    "quantize_model",
    "save_model",
    "set_logging_level",
    "simulate_model",
]
