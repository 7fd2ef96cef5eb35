"""The stand-in of an LSTM or GRU in the simulated model, from its record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..capability import kind_of
from ..export.integer_ir import product_scale, quantize_bias
from ..layers.gates import gates_to_onnx, gates_to_torch
from ..layers.recurrent_constants import RecurrentFactors, constants_of
from ..layers.run_recurrent import recurrent_weights
from ..layers.simulate import SimulatedRecurrent
from ..records import LayerRecord

_PAIRS = (("scale_w", "scale_d"), ("scale_r", "scale_h"))  # of weights and of what they multiply


@torch.no_grad()
def simulated_recurrent(name: str, module: Any, record: LayerRecord) -> SimulatedRecurrent:
    """The stand-in that computes with the factors of `record`; raises what the export raises."""
    kind = kind_of(module)
    assert kind is not None
    weight, _, *biases = recurrent_weights(module)
    for bias, (weights, activations) in zip(biases or (None, None), _PAIRS, strict=True):
        deq_scale = product_scale(name, record, weights, activations)
        if bias is not None:
            rows = gates_to_onnx(bias.detach().cpu(), kind).numpy()
            by_row = deq_scale.repeat(rows.size // deq_scale.size)
            quantize_bias(name, rows, by_row, f"{weights} * {activations}")

    def scale(value: object) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=weight.device)

    def offset(value: int | None) -> Tensor:
        return torch.tensor(value, dtype=torch.int32, device=weight.device)

    factors = RecurrentFactors(
        scale(record.scale_d),
        offset(record.offset_d),
        gates_to_torch(scale(record.scale_w), kind),
        scale(record.scale_h),
        offset(record.offset_h),
        gates_to_torch(scale(record.scale_r), kind),
        record.act_bits,
        record.wts_bits,
        record.force_fp16,
    )
    return SimulatedRecurrent(name, module, constants_of(module, factors))
