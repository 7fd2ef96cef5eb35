"""LSTM and GRU: their integer description and how each exported graph holds them.

The deploy graph has one operator for the whole layer, which quantizes its input and its hidden
state at every step. The fake_quant graph keeps the LSTM or GRU, with quantized constants behind
quantized inputs; between the steps its hidden state stays as it is, so that it is approximate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from .._binary import host
from ..graph.lazy_array import Array
from ..graph.recurrent import RecurrentSite, replace_recurrent_constants
from ..graph.site import new_initializer
from ..records import LayerRecord
from .fake_quant import Chain
from .integer_ir import codes_of, product_scale, quantize_bias

DEPLOY_OPS = {
    "LSTM": "BasicLSTMInplaceFillWindowCache",
    "GRU": "BasicGRUInplaceFillWindowCache",
}
QUANT_DTYPE = {8: 2, 16: 6}  # the graph engine's numbers of int8 and int16
APPROXIMATE = "Approximate: the hidden state is quantized before the first step only, not between."


@dataclass(frozen=True)
class IntegerRecurrent:
    """What a quantized LSTM or GRU computes before its activations, from x and h of a step.

    (sum((q_x - offset_d) * weight) + bias of W) * deq_scale and
    (sum((q_h - offset_h) * recurrence) + bias of R) * deq_scale_h. Gates are in the order of ONNX.
    """

    name: str
    op_type: str  # LSTM or GRU
    scale_d: np.float32
    offset_d: int
    scale_h: np.float32
    offset_h: int
    act_bits: int
    weight: NDArray[np.int8]  # [1, G*H, I]
    recurrence: NDArray[np.int8]  # [1, G*H, H]
    bias: NDArray[np.int32]  # [1, 2*G*H]
    deq_scale: NDArray[np.float32]  # fl(scale_w * scale_d), one per gate or one per row
    deq_scale_h: NDArray[np.float32]  # fl(scale_r * scale_h), as many
    scale_w: NDArray[np.float32]  # of the codes in a graph that multiplies scaled floats
    scale_r: NDArray[np.float32]


def describe_recurrent(name: str, site: RecurrentSite, record: LayerRecord) -> IntegerRecurrent:
    """The integers of the layer `name` for the factors in `record`; raises what `describe` does."""
    assert record.scale_d is not None
    assert record.offset_d is not None
    assert record.scale_h is not None
    assert record.offset_h is not None
    rows = site.weight.shape[1]
    scale_d, scale_h = np.float32(record.scale_d), np.float32(record.scale_h)
    deq_scale = product_scale(name, record, "scale_w", "scale_d")
    deq_scale_h = product_scale(name, record, "scale_r", "scale_h")
    of_input, of_hidden = np.split(site.bias.reshape(-1), 2)
    halves = [
        quantize_bias(name, of_input, _by_row(deq_scale, rows), "scale_w * scale_d"),
        quantize_bias(name, of_hidden, _by_row(deq_scale_h, rows), "scale_r * scale_h"),
    ]
    scale_w, scale_r = (np.asarray(s, np.float32) for s in (record.scale_w, record.scale_r))
    return IntegerRecurrent(
        name=name,
        op_type=site.node.op_type,
        scale_d=scale_d,
        offset_d=record.offset_d,
        scale_h=scale_h,
        offset_h=record.offset_h,
        act_bits=record.act_bits,
        weight=_codes(site.weight, scale_w),
        recurrence=_codes(site.recurrence, scale_r),
        bias=np.concatenate(halves)[None],
        deq_scale=deq_scale,
        deq_scale_h=deq_scale_h,
        scale_w=deq_scale / scale_d if record.force_fp16 else scale_w,
        scale_r=deq_scale_h / scale_h if record.force_fp16 else scale_r,
    )


def write_deploy(graph: ir.Graph, layer: IntegerRecurrent, at: RecurrentSite) -> None:
    """Turns the node into the operator of the NPU; its name and its outputs stay."""
    node, name = at.node, layer.name
    x, h, c = at.input, at.initial_h, at.initial_c
    replace_recurrent_constants(at, name, layer.weight, layer.recurrence, layer.bias)
    _, w, r, b, *_ = node.inputs
    scales = np.concatenate([layer.deq_scale, layer.deq_scale_h])
    zeros = np.zeros(scales.size, np.int8)
    words = host.dequant_words(scales, zeros, zeros.view(np.uint8))
    param = new_initializer(graph, f"{name}.dequant.param", words)
    # Behind b: lengths of the sequences and clean_cache, both absent.
    inputs = [x, w, r, h, *([] if c is None else [c]), b, None, None, param]
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    node.op_type = DEPLOY_OPS[layer.op_type]
    node.attributes.clear()
    for attribute in _deploy_attributes(layer):
        node.attributes[attribute.name] = attribute


def write_fake_quant(graph: ir.Graph, layer: IntegerRecurrent, at: RecurrentSite) -> None:
    """Quantizes input, initial hidden state and constants of the node, which stays."""
    node, name = at.node, layer.name
    rows = layer.weight.shape[1]
    deq_scales = [_by_row(layer.deq_scale, rows), _by_row(layer.deq_scale_h, rows)]
    replace_recurrent_constants(
        at,
        name,
        layer.weight * _by_row(layer.scale_w, rows)[:, None],
        layer.recurrence * _by_row(layer.scale_r, rows)[:, None],
        (layer.bias * np.concatenate(deq_scales, dtype=np.float64)).astype(np.float32),
    )
    for index, scale, offset in (
        (0, layer.scale_d, layer.offset_d),
        (5, layer.scale_h, layer.offset_h),
    ):
        number = "" if index == 0 else "1"
        value = node.inputs[index]
        assert value is not None
        chain = Chain(graph, node, f"{name}.quant{number}.fakequant", value, before=True)
        chain.quantize(scale, offset, layer.act_bits)
        prefix = f"{name}.anti_quant{number}.fake_antiquant"
        chain = Chain(graph, node, prefix, chain.value, before=True)
        chain.append("Mul", "mul", chain.constant("scale", scale))
        node.replace_input_with(index, chain.value)
    node.doc_string = APPROXIMATE


RECURRENT_WRITERS: dict[str, Callable[[ir.Graph, IntegerRecurrent, RecurrentSite], None]] = {
    "deploy": write_deploy,
    "fake_quant": write_fake_quant,
}


def _deploy_attributes(layer: IntegerRecurrent) -> list[ir.Attr]:
    own = (
        ir.AttrInt64("input_forget", 0)
        if layer.op_type == "LSTM"
        else ir.AttrInt64("linear_before_reset", 1)
    )
    return [
        ir.AttrInt64("hidden_size", layer.recurrence.shape[2]),
        ir.AttrFloat32s("activation_alpha", []),
        ir.AttrFloat32s("activation_beta", []),
        ir.AttrStrings("activations", []),
        ir.AttrFloat32("clip", -1.0),
        ir.AttrString("direction", "forward"),
        own,
        ir.AttrInt64("quant_sqrt_mode_x", 0),
        ir.AttrInt64("quant_sqrt_mode_h", 0),
        ir.AttrFloat32("quant_scale_x", float(np.float32(1) / layer.scale_d)),
        ir.AttrFloat32("quant_offset_x", float(layer.offset_d)),
        ir.AttrFloat32("quant_scale_h", float(np.float32(1) / layer.scale_h)),
        ir.AttrFloat32("quant_offset_h", float(layer.offset_h)),
        ir.AttrInt64("quant_dtype", QUANT_DTYPE[layer.act_bits]),
    ]


def _codes(weight: Array, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    by_row = _by_row(scales, weight.shape[1])
    rows = torch.from_numpy(np.array(weight[0], order="C"))  # torch wants writable memory
    codes: NDArray[np.int8] = codes_of(rows, by_row.tolist(), 8).numpy()
    return codes[None]


def _by_row(scales: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """One scale per row, of one per row or one per gate."""
    return scales.repeat(rows // scales.size)
