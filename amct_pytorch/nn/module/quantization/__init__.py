"""Quantized forms of single torch modules, for models that are changed by hand."""

from .conv1d import Conv1dQAT
from .conv2d import Conv2dQAT
from .conv3d import Conv3dQAT
from .conv_transpose_1d import ConvTranspose1dQAT
from .conv_transpose_2d import ConvTranspose2dQAT
from .gru import GRUQAT
from .linear import LinearQAT
from .lstm import LSTMQAT
from .matmul import MatMulQAT
from .quant_calibration_op import QuantCalibrationOp

__all__ = [
    "GRUQAT",
    "LSTMQAT",
    "Conv1dQAT",
    "Conv2dQAT",
    "Conv3dQAT",
    "ConvTranspose1dQAT",
    "ConvTranspose2dQAT",
    "LinearQAT",
    "MatMulQAT",
    "QuantCalibrationOp",
]
