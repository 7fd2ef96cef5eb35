"""The integer description of a quantized layer: the only source of every exported graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ..graph.lazy_array import Array, LazyArray
from ..graph.site import Site, is_product
from ..layers.channels import channels_first, channels_restored
from ..layers.integers import bias_codes, row_codes
from ..layers.integers import dequant_scale as fused_scale
from ..records import LayerRecord

logger = logging.getLogger(__name__)

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class IntegerLayer:
    """What a quantized layer computes: y = (sum((q_x - offset_d) * weight) + bias) * deq_scale.

    With a shift N the sum passes through int16: y = clip(floor(sum / 2^N)) * 2^N * deq_scale.
    """

    name: str
    op_type: str  # Conv, ConvTranspose, Gemm, MatMul or AveragePool
    dtype: ir.DataType  # of the layer's input and output: FLOAT or FLOAT16
    scale_d: np.float32
    offset_d: int
    act_bits: int
    wts_bits: int
    weight: LazyArray | None  # int8, in the layout of the site; None if that has none
    bias: NDArray[np.int32] | None
    deq_scale: NDArray[np.float32]  # fl(scale_w * scale_d), one or one per output channel
    shift: NDArray[np.uint8] | None  # N, one per deq_scale; None: the sum stays in int32
    # Of the second input of a MatMul without weight, in wts_bits with offset 0; its record has it
    # as scale_w.
    scale_second: np.float32 | None = None


def describe(name: str, site: Site, record: LayerRecord) -> IntegerLayer:
    """The integers of the layer `name` for the factors in `record`.

    Raises RuntimeError, naming the layer, when a bias does not fit into int32 and ValueError when
    a factor cannot be inverted in float32.
    """
    assert record.scale_d is not None
    assert record.offset_d is not None
    if record.act_bits == 4 and site.bias_add is not None:
        raise RuntimeError(
            f"{name}: 4-bit activations of a MatMul with a bias have no deploy form; use 8 bits "
            "(activation_quant_params.num_bits) or leave the layer float"
        )
    deq_scale = dequant_scale(name, record)
    weight = None
    if site.weight is not None:
        weight = LazyArray(site.weight.shape, np.dtype(np.int8), partial(_codes, site, record))
    layer = IntegerLayer(
        name=name,
        op_type=site.node.op_type,
        dtype=site.dtype,
        scale_d=np.float32(record.scale_d),
        offset_d=record.offset_d,
        act_bits=record.act_bits,
        wts_bits=record.wts_bits,
        weight=weight,
        bias=None if site.bias is None else quantize_bias(name, site.bias, deq_scale),
        deq_scale=deq_scale,
        shift=shift_of(record),
        scale_second=np.float32(record.scale_w[0]) if is_product(site.node) else None,
    )
    _check_accumulator(layer, site)
    return layer


def dequant_scale(name: str, record: LayerRecord) -> NDArray[np.float32]:
    """fl(scale_w * scale_d); its low 13 bits are cleared under FORCE_FP16_QUANT."""
    return product_scale(name, record, "scale_w", "scale_d")


def product_scale(
    name: str, record: LayerRecord, weights: str, activations: str
) -> NDArray[np.float32]:
    """The dequantization scale of the two fields of `record`, of weights and of activations."""
    scale_d = np.float32(getattr(record, activations) or 0.0)
    with np.errstate(all="ignore"):
        invertible = np.isfinite(np.float32(1) / scale_d)
    scale_w = torch.tensor(getattr(record, weights), dtype=torch.float32)
    product = fused_scale(scale_w, torch.tensor(scale_d), record.force_fp16)
    deq_scale: NDArray[np.float32] = product.numpy()
    if not (invertible and np.all(np.isfinite(deq_scale)) and np.all(deq_scale > 0)):
        raise ValueError(
            f"{name}: expected {activations} and {weights} with a finite inverse and product in "
            f"float32, got {activations} {scale_d!r} and {weights} * {activations} "
            f"{deq_scale.min()!r} to {deq_scale.max()!r}"
        )
    return deq_scale


def shift_of(record: LayerRecord) -> NDArray[np.uint8] | None:
    """N for each dequantization scale, or None where nothing is shifted."""
    return np.asarray(record.shift_bit, np.uint8) if any(record.shift_bit) else None


def codes_of(rows: torch.Tensor, scales: Sequence[float], bits: int) -> torch.Tensor:
    """int8 codes of a weight [Cout, ...] under one scale or one per row."""
    return row_codes(rows, torch.tensor(scales, dtype=torch.float32, device=rows.device), bits)


def quantize_bias(
    name: str,
    bias: NDArray[np.generic],
    deq_scale: NDArray[np.float32],
    unit: str = "scale_w * scale_d",
) -> NDArray[np.int32]:
    """rint(bias / deq_scale) in float64; RuntimeError when one does not fit into int32."""
    codes = bias_codes(*map(torch.from_numpy, (bias.astype(np.float64), deq_scale))).numpy()
    worst = int(np.argmax(np.abs(codes)))
    if not abs(codes[worst]) <= INT32_MAX:  # a NaN fails too
        raise RuntimeError(
            f"{name}: the bias {float(bias[worst])!r} of channel {worst} is {codes[worst]:.6g} in "
            f"units of {unit}, beyond int32; leave the layer float (quant_enable: false)"
        )
    return codes.astype(np.int32)


def groups_of(node: ir.Node) -> int:
    """The `group` attribute of a convolution, 1 when absent."""
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def weight_channels_first(weight: Array, node: ir.Node) -> torch.Tensor:
    """[Cout, ...] of a weight in the layout of its node (MatMul and Gemm hold [K, N])."""
    tensor = _tensor(weight)
    if node.op_type in ("Gemm", "MatMul"):
        return tensor.t()
    return channels_first(tensor, node.op_type == "ConvTranspose", groups_of(node))


def output_channels(site: Site) -> int:
    """The number of output channels of a layer with weights."""
    assert site.weight is not None
    if site.node.op_type == "Conv":
        return site.weight.shape[0]
    return site.weight.shape[1] * groups_of(site.node)


def input_channels(site: Site) -> int:
    """The number of input channels of a layer with weights."""
    assert site.weight is not None
    if site.node.op_type == "Conv":
        return site.weight.shape[1] * groups_of(site.node)
    return site.weight.shape[0]


def _tensor(array: Array) -> torch.Tensor:
    if not array.flags.writeable:  # torch warns of memory that it could write to
        array = array.copy()
    return torch.from_numpy(array)


def _codes(site: Site, record: LayerRecord) -> NDArray[np.int8]:
    """The codes of a site's weight in its layout."""
    assert site.weight is not None
    node = site.node
    rows = weight_channels_first(site.weight.read(), node)
    codes = codes_of(rows, record.scale_w, record.wts_bits)
    if node.op_type in ("Gemm", "MatMul"):
        codes = codes.t()
    else:
        codes = channels_restored(codes, node.op_type == "ConvTranspose", groups_of(node))
    result: NDArray[np.int8] = codes.contiguous().numpy()
    return result


def _check_accumulator(layer: IntegerLayer, site: Site) -> None:
    """Warns when a worst-case input could overflow the int32 accumulator."""
    if layer.weight is None or layer.act_bits > 8:
        return
    half = 2 ** (layer.act_bits - 1)
    largest = max(half + layer.offset_d, half - 1 - layer.offset_d)
    products = math.prod(layer.weight.shape) // output_channels(site)
    bias = np.zeros(1, np.int64) if layer.bias is None else np.abs(layer.bias.astype(np.int64))
    if products * 2 ** (layer.wts_bits - 1) * largest + int(bias.max()) <= INT32_MAX:
        return  # whatever the weights are
    rows = weight_channels_first(layer.weight.read(), site.node).flatten(1)
    bound = rows.to(torch.int64).abs().sum(1) * largest + torch.from_numpy(bias)
    if int(bound.max()) > INT32_MAX:
        logger.warning(
            "%s: channel %d can reach %d, beyond the int32 accumulator; inputs at their limits "
            "would overflow",
            layer.name,
            int(bound.argmax()),
            int(bound.max()),
        )
