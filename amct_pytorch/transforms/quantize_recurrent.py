"""ARQ on the weights of an LSTM or GRU: a scale for every row, or one for every gate.

The module keeps torch's order of gates; record and graph have that of ONNX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config.layer import LayerConfig
from ..graph.capture import Capture
from ..graph.facts import main_nodes
from ..graph.lazy_array import LazyArray
from ..graph.recurrent import GATES, locate_recurrent, replace_recurrent_constants
from ..layers.gates import gates_to_onnx
from ..layers.run_recurrent import recurrent_weights
from ..ops.arq import arq
from ..ops.fake_quantize import fake_quantize
from ..records import LayerRecord
from .weight_checks import check_values, warn_of_tiny_channels

WEIGHTS = ("weight_ih_l0", "weight_hh_l0")


def quantize_recurrent(
    name: str, module: Any, kind: str, config: LayerConfig, precision_mode: str | None
) -> LayerRecord:
    """Replaces both weights of `module` by their fake-quantized values; returns the record."""
    weight = config.weight_quant_params
    biases = ("bias_ih_l0", "bias_hh_l0")
    check_values(name, dict(zip((*WEIGHTS, *biases), recurrent_weights(module), strict=False)))
    gates = None if weight.channel_wise else GATES[kind]
    scale_w, scale_r = (
        gates_to_onnx(_quantize(name, module, key, weight.num_bits, gates), kind).tolist()
        for key in WEIGHTS
    )
    module.flatten_parameters()  # new tensors: cuDNN wants all weights in one piece
    return LayerRecord(
        scale_w=tuple(scale_w),
        offset_w=(0,) * len(scale_w),
        act_type=f"INT{config.activation_quant_params.num_bits}",
        wts_type=f"INT{weight.num_bits}",
        fakequant_precision_mode=precision_mode,
        scale_r=tuple(scale_r),
        offset_r=(0,) * len(scale_r),
    )


def write_recurrent(capture: Capture, module: nn.Module, name: str, kind: str) -> None:
    """Puts the weights of `module` into the captured graph."""
    weight, recurrence = (
        LazyArray.of_tensor(gates_to_onnx(module.get_parameter(key), kind)).read()[None]
        for key in WEIGHTS
    )
    site = locate_recurrent(main_nodes(capture, name, kind)[0])
    replace_recurrent_constants(site, name, weight, recurrence)


@torch.no_grad()
def _quantize(name: str, module: Any, key: str, num_bits: int, gates: int | None) -> Tensor:
    weight: Tensor = getattr(module, key)
    rows = weight.detach().reshape(gates or len(weight), -1)
    scale, offset = arq(rows, num_bits, 0)
    warn_of_tiny_channels(f"{name}.{key}", rows, scale, "gates" if gates else "rows")
    quantized = fake_quantize(rows, scale, offset, num_bits, 0).reshape(weight.shape)
    setattr(module, key, nn.Parameter(quantized, requires_grad=weight.requires_grad))
    return scale.cpu()
