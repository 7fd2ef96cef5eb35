"""Quantization of trained PyTorch models for Ascend NPUs."""

from . import calibrators, ops
from .auto_calibration import accuracy_based_auto_calibration
from .convert import convert_qat_model
from .kv_cache import create_quant_cali_config, create_quant_cali_model
from .logging import set_logging_level
from .nn.module.quantization import QuantCalibrationOp
from .ptq import create_quant_config, quantize_model, save_model
from .qat import (
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
    save_quant_retrain_model,
)
from .search.model_evaluator import ModelEvaluator
from .transforms.simulate import simulate_model
from .version import __version__

__all__ = [
    "ModelEvaluator",
    "QuantCalibrationOp",
    "__version__",
    "accuracy_based_auto_calibration",
    "calibrators",
    "convert_qat_model",
    "create_quant_cali_config",
    "create_quant_cali_model",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "ops",
    "quantize_model",
    "restore_quant_retrain_model",
    "save_model",
    "save_quant_retrain_model",
    "set_logging_level",
    "simulate_model",
]
