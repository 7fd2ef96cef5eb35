"""The weight of a layer as one tensor, in float and quantized.

LSTM and GRU multiply [W, R] with the input and the hidden state in one: [G * H, I + H].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..capability import is_recurrent
from ..graph import Layer
from ..layers.channels import channels_first
from ..layers.gates import gates_to_torch
from ..layers.run_recurrent import recurrent_weights
from ..ops.fake_quantize import fake_quantize
from ..ops.similarity import similarity
from ..records import LayerRecord


def weight_of(module: Any) -> Tensor | None:
    """The weight of a layer; None for a pooling."""
    if is_recurrent(module):
        return torch.cat(recurrent_weights(module)[:2], 1)
    weight: Tensor | None = getattr(module, "weight", None)
    return weight


@torch.no_grad()
def weight_sqnr(module: Any, layer: Layer, record: LayerRecord) -> float:
    """How far the quantized weight is from the float one, in dB."""
    bits = record.wts_bits
    if not is_recurrent(module):
        rows = channels_first(module.weight, layer.kind.startswith("ConvTranspose"), layer.groups)
        return similarity(rows, _fake_quantized(rows, torch.tensor(record.scale_w), bits)).sqnr_db
    pairs = zip(recurrent_weights(module)[:2], (record.scale_w, record.scale_r), strict=True)
    halves = []
    for weight, factors in pairs:
        scale = gates_to_torch(torch.tensor(factors), layer.kind)
        rows = weight.reshape(scale.numel(), -1)
        halves.append(_fake_quantized(rows, scale, bits).reshape(weight.shape))
    whole = weight_of(module)
    assert whole is not None
    return similarity(whole, torch.cat(halves, 1)).sqnr_db


def _fake_quantized(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    scale = scale.to(rows.device)
    offset = torch.zeros_like(scale, dtype=torch.int32)
    if len(scale) == 1:
        return fake_quantize(rows, scale[0], offset[0], bits)
    return fake_quantize(rows, scale, offset, bits, 0)
