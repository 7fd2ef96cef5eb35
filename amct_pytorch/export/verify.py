"""Executes a deploy model exactly: integers stay integers from AscendQuant to AscendDequant.

This is the reference for what the NPU computes. Codes carry their offset into the layer; the
accumulator is sum((q - offset) * weight) + bias in int32, padding counts as real zero; behind it
one float32 multiplication, of floor(sum / 2^N) in int16 and 2^N where the layer has a shift N. All
other nodes run in ONNX's own reference evaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from .._binary import host
from ..graph.site import LAYER_OPS
from .integer_op import DOMAIN, Array, IntegerOp, quantized, unpacked
from .verify_recurrent import BasicGRUInplaceFillWindowCache, BasicLSTMInplaceFillWindowCache

BITS = {"INT4": 4, "INT8": 8, "INT16": 16}


def run_deploy(model: onnx.ModelProto | str, inputs: dict[str, Array]) -> dict[str, Array]:
    """Outputs of a deploy model by name; `model` is the proto or a path."""
    proto = onnx.load(model) if isinstance(model, str) else model
    integer = ir.from_proto(proto)
    _mark_integer_nodes(integer)
    session = ReferenceEvaluator(ir.to_proto(integer), new_ops=_OPS)
    return dict(zip(session.output_names, session.run(None, inputs), strict=True))


def _mark_integer_nodes(model: ir.Model) -> None:
    """Moves quantized nodes to a domain of their own and tells layers the offset of their input."""
    model.graph.opset_imports[DOMAIN] = 1
    for node in model.graph:
        if node.op_type in _ASCEND_OPS and not node.domain:
            node.domain = DOMAIN
            for index, output in enumerate(node.outputs):
                # The evaluator would hand an output without a name to absent inputs.
                output.name = output.name or f"{node.name}.unused{index}"
    for node in model.graph:
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type in LAYER_OPS and source is not None and source.op_type == "AscendQuant":
            node.domain = DOMAIN
            offset = source.attributes["offset"].as_float()
            node.attributes["x_offset"] = ir.AttrFloat32("x_offset", offset)


class _FloatOp(OpRun):
    """Turns an integer layer into one that stayed float: onnx knows no transposed groups."""

    op_domain = ""

    def _result(self, y: torch.Tensor, x: Array) -> tuple[Array]:
        return (y.numpy().astype(x.dtype),)


class AscendQuant(IntegerOp):
    def _run(self, x: Array, scale: float, offset: float, dst_type: str) -> tuple[Array]:
        bits = BITS[dst_type]
        codes = quantized(x, scale, offset, bits)
        return (codes.astype(np.int8 if bits <= 8 else np.int16),)


class AscendDequant(IntegerOp):
    def _run(self, x: Array, words: Array, dtype: int) -> tuple[Array]:
        scale, _, shift = host.unpack_dequant_words(words)
        channel_axis = 1 if x.ndim > 2 and scale.size > 1 else x.ndim - 1
        shape = [1] * x.ndim
        shape[channel_axis] = -1
        if shift.any():
            n = shift.astype(np.int32).reshape(shape)
            x = np.ldexp(np.clip(x >> n, -32768, 32767).astype(np.float32), n)
        y = x.astype(np.float32) * scale.reshape(shape)
        return (y.astype(np.float16 if dtype else np.float32),)


def _codes(x: Array, x_offset: float) -> torch.Tensor:
    """Codes without their offset, in float64, where every sum below 2^53 is exact."""
    return torch.from_numpy(x.astype(np.float64) - x_offset)


def _unpacked(weight: Array, axis: int, channels: int) -> torch.Tensor:
    return torch.from_numpy(unpacked(weight, axis, channels))


def _bias(bias: Array | None) -> torch.Tensor | None:
    return None if bias is None else torch.from_numpy(bias.astype(np.float64))


def _padded(x: torch.Tensor, pads: list[int] | None) -> torch.Tensor:
    if not pads:
        return x
    rank = len(pads) // 2
    pairs = [side for d in reversed(range(rank)) for side in (pads[d], pads[rank + d])]
    return F.pad(x, pairs)


class BatchNormalization(OpRun):
    """In inference form at every opset: onnx's own normalizes by the batch before opset 14."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        var: Array,
        epsilon: float = 1e-5,
        **_: Any,
    ) -> tuple[Array]:
        per_channel = [v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, var)]
        scale, bias, mean, var = per_channel
        return ((scale * (x - mean) / np.sqrt(var + epsilon) + bias).astype(x.dtype),)


class Conv(IntegerOp):
    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        x_offset: float = 0.0,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
        auto_pad: str | None = None,
    ) -> tuple[Array]:
        groups = group or 1
        codes = _padded(_codes(x, x_offset), pads)
        w = _unpacked(weight, 1, x.shape[1] // groups)
        conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        y = conv(codes, w, _bias(bias), strides or 1, 0, dilations or 1, groups)
        return self._result(y, x)


class ConvTranspose(IntegerOp):
    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        x_offset: float = 0.0,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
        auto_pad: str | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        w = _unpacked(weight, 0, x.shape[1])
        deconv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        padding = (pads or [0] * 2 * rank)[:rank]
        y = deconv(
            _codes(x, x_offset),
            w,
            _bias(bias),
            strides or 1,
            padding,
            output_padding or 0,
            group or 1,
            dilations or 1,
        )
        return self._result(y, x)


class Gemm(IntegerOp):
    def _run(
        self, x: Array, weight: Array, bias: Array | None = None, x_offset: float = 0.0, **_: Any
    ) -> tuple[Array]:
        y = _codes(x, x_offset) @ _unpacked(weight, 0, x.shape[-1])
        if bias is not None:
            y = y + torch.from_numpy(bias.astype(np.float64))
        return self._result(y, x)


class MatMul(IntegerOp):
    def _run(self, x: Array, weight: Array, x_offset: float = 0.0) -> tuple[Array]:
        # More than two dimensions: codes of a second input, which are never packed.
        second = _unpacked(weight, 0, x.shape[-1]) if weight.ndim == 2 else _codes(weight, 0.0)
        y = _codes(x, x_offset) @ second
        return self._result(y, x)


class AveragePool(IntegerOp):
    def _run(
        self,
        x: Array,
        x_offset: float = 0.0,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
    ) -> tuple[Array]:
        assert kernel_shape is not None
        y = F.avg_pool2d(
            _codes(x, x_offset),
            kernel_shape,
            strides or 1,
            (pads or [0, 0])[:2],
            bool(ceil_mode),
            bool(count_include_pad),
        )
        return (y.numpy(),)


_ASCEND_OPS = {
    op.__name__: op
    for op in (
        AscendQuant,
        AscendDequant,
        BasicLSTMInplaceFillWindowCache,
        BasicGRUInplaceFillWindowCache,
    )
}
_OPS: list[type[OpRun]] = [
    *_ASCEND_OPS.values(),
    BatchNormalization,
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
    AveragePool,
    *(type(op.__name__, (_FloatOp, op), {}) for op in (Conv, ConvTranspose)),
]
