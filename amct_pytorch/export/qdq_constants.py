"""Constants of a QuantizeLinear/DequantizeLinear graph, evaluated together with their grid.

A weight comes to its layer as codes or as a float, through QuantizeLinear, DequantizeLinear and
nodes that only move, select or join elements. Each element keeps the scale and the zero point it
was quantized with on its way, so that in the layer's layout one sees which output channel has which
scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.generic]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
DOMAINS = ("", "ai.onnx", "com.microsoft")  # the last one: int16 below opset 21


# Bits of a type of codes, and the code in the middle of its range: what 0 is in a signed type.
BITS_AND_MIDDLE = {
    ir.DataType.INT4: (4, 0),
    ir.DataType.UINT4: (4, 8),
    ir.DataType.INT8: (8, 0),
    ir.DataType.UINT8: (8, 128),
    ir.DataType.INT16: (16, 0),
    ir.DataType.UINT16: (16, 32768),
    ir.DataType.INT32: (32, 0),  # of biases
}


@dataclass(frozen=True)
class Factors:
    """The factors of one QuantizeLinear or DequantizeLinear node."""

    scale: NDArray[np.float32]  # one element, or one per index of `axis`
    zero: NDArray[np.int64]  # one element, or as many as scales
    codes: ir.DataType | None  # None: a DequantizeLinear without zero point, which takes any type
    axis: int

    def agree(self, other: Factors) -> bool:
        """Whether the two nodes are a pair."""
        types = {self.codes, other.codes} - {None}
        axes = self.scale.size == 1 or self.axis == other.axis
        scales = np.array_equal(self.scale, other.scale)
        return len(types) < 2 and axes and scales and np.array_equal(self.zero, other.zero)


@dataclass(frozen=True)
class Grid:
    """The scale and the zero point of every element, in the elements' shape."""

    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    codes: ir.DataType

    @property
    def bits(self) -> int:
        """Of the codes."""
        return BITS_AND_MIDDLE[self.codes][0]

    @property
    def offset(self) -> NDArray[np.int64]:
        """The zero points on the signed grid."""
        return self.zero - BITS_AND_MIDDLE[self.codes][1]


@dataclass(frozen=True)
class Constant:
    """The elements of a constant; codes between a QuantizeLinear and its DequantizeLinear."""

    values: Array
    grid: Grid | None = None  # None: nothing has scaled it
    quantize: ir.Node | None = None  # the QuantizeLinear whose codes these are


def is_node(node: ir.Node | None, op_type: str) -> bool:
    """Whether `node` is a standard `op_type` node."""
    return node is not None and node.op_type == op_type and node.domain in DOMAINS


def label(node: ir.Node) -> str:
    """The name of a node for messages, or what it writes if it has none."""
    return node.name or f"{node.op_type} -> {node.outputs[0].name}"


def read_factors(node: ir.Node) -> Factors:
    """The factors of a QuantizeLinear or DequantizeLinear; RuntimeError if they cannot be used."""
    given = [value for value in node.inputs[1:3] if value is not None]
    constants = [constant for constant in map(evaluate, given) if constant is not None]
    if len(constants) != len(given):
        raise RuntimeError(f"{label(node)}: expected constant factors, found computed ones")
    scale, zero = constants[0].values, constants[1].values if len(constants) > 1 else None
    block = node.attributes.get("block_size")
    if scale.ndim > 1 or (block is not None and block.as_int()):
        raise RuntimeError(f"{label(node)}: expected one scale, or one per channel, found blocks")
    if scale.dtype != np.float32:
        raise RuntimeError(f"{label(node)}: expected a float32 scale, got {scale.dtype}")
    scales = scale.reshape(-1).astype(np.float32)
    for number in scales.tolist():
        if not 0 < number < math.inf:  # a NaN is not
            raise RuntimeError(f"{label(node)}: expected finite scales above 0, got {number}")
    if zero is not None and zero.size != scale.size:
        raise RuntimeError(f"{label(node)}: {scale.size} scales, but {zero.size} zero points")
    codes = None
    if zero is not None:
        codes = _codes(node, ir.DataType.from_numpy(zero.dtype))
    elif node.op_type == QUANTIZE:
        wanted = node.attributes.get("output_dtype")
        codes = _codes(node, ir.DataType((wanted.as_int() if wanted else 0) or ir.DataType.UINT8))
    axis = node.attributes.get("axis")
    return Factors(
        scales,
        np.zeros(scale.size, np.int64) if zero is None else zero.reshape(-1).astype(np.int64),
        codes,
        1 if axis is None else axis.as_int(),
    )


def check_pair(quantize: ir.Node, dequantize: ir.Node) -> None:
    """Raises RuntimeError unless the two have the same factors."""
    if not read_factors(quantize).agree(read_factors(dequantize)):
        raise RuntimeError(
            f"{label(quantize)} and {label(dequantize)}: expected one scale and one zero point "
            "for both, as a pair shares them; found two"
        )


def evaluate(value: ir.Value | None) -> Constant | None:
    """The constant that `value` is, or None where it is computed from inputs of the graph.

    Raises RuntimeError, naming the nodes, for a pair of different factors and for factors that
    cannot be used.
    """
    producer = None if value is None else value.producer()
    if value is None or producer is None or producer.op_type == "Constant":
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        return None if tensor is None else Constant(tensor.numpy())
    if producer.domain not in DOMAINS:
        return None
    if producer.op_type == "Concat":
        return _joined(producer)
    if producer.op_type not in (QUANTIZE, DEQUANTIZE, *_MOVES):
        return None
    source = evaluate(producer.inputs[0])
    if source is None:
        return None
    if producer.op_type == QUANTIZE:
        return _quantized(producer, source)
    if producer.op_type == DEQUANTIZE:
        return _dequantized(producer, source)
    return _moved(producer, source)


def _quantized(node: ir.Node, source: Constant) -> Constant:
    factors = read_factors(node)
    assert factors.codes is not None
    grid = _grid(node, factors, factors.codes, source.values.shape)
    bits, middle = BITS_AND_MIDDLE[factors.codes]
    low = middle - 2 ** (bits - 1)
    if np.any(np.isnan(source.values)):
        raise RuntimeError(f"{label(node)}: expected numbers to quantize, found NaN")
    with np.errstate(over="ignore"):  # what is infinite is clipped
        codes = np.rint(source.values.astype(np.float32) / grid.scale) + grid.zero
    codes = np.clip(codes, low, low + 2**bits - 1)
    return Constant(codes.astype(np.int64), grid, node)


def _dequantized(node: ir.Node, source: Constant) -> Constant:
    if source.quantize is not None:
        check_pair(source.quantize, node)
        assert source.grid is not None
        grid = source.grid
    else:
        codes = _codes(node, ir.DataType.from_numpy(source.values.dtype))
        grid = _grid(node, read_factors(node), codes, source.values.shape)
    real = (source.values.astype(np.int64) - grid.zero).astype(np.float32) * grid.scale
    return Constant(real.astype(np.float32), grid)


def _codes(node: ir.Node, dtype: ir.DataType) -> ir.DataType:
    if dtype not in BITS_AND_MIDDLE:
        known = ", ".join(known.name for known in BITS_AND_MIDDLE)
        raise RuntimeError(f"{label(node)}: expected codes of {known}, got {dtype.name}")
    return dtype


def _grid(node: ir.Node, factors: Factors, codes: ir.DataType, shape: tuple[int, ...]) -> Grid:
    count, axis, along = factors.scale.size, factors.axis, [1] * len(shape)
    if count != 1:
        if not -len(shape) <= axis < len(shape) or shape[axis] != count:
            raise RuntimeError(
                f"{label(node)}: {count} scales do not fit axis {axis} of shape {list(shape)}"
            )
        along[axis] = -1
    scale = np.broadcast_to(factors.scale.reshape(along), shape)
    return Grid(scale, np.broadcast_to(factors.zero.reshape(along), shape), codes)


# ---- nodes between, which move elements, select some or change their type ----

_MOVES = ("Cast", "Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Slice")


def _joined(node: ir.Node) -> Constant | None:
    """What a Concat makes of constants; None where some lie on no grid, or on another type."""
    parts = [part for part in map(evaluate, node.inputs) if part is not None]
    if len(parts) < len(node.inputs) or any(part.quantize is not None for part in parts):
        return None
    axis = node.attributes["axis"].as_int()
    values = np.concatenate([part.values for part in parts], axis)
    grids = [part.grid for part in parts if part.grid is not None]
    if not grids:
        return Constant(values)
    if len(grids) < len(parts) or len({grid.codes for grid in grids}) > 1:
        return None
    scale = np.concatenate([grid.scale for grid in grids], axis)
    zero = np.concatenate([grid.zero for grid in grids], axis)
    return Constant(values, Grid(scale, zero, grids[0].codes))


def _moved(node: ir.Node, source: Constant) -> Constant | None:
    if node.op_type == "Cast":  # of factors, and of weights before they are quantized
        to = ir.DataType(node.attributes["to"].as_int())
        return None if source.grid else Constant(source.values.astype(to.numpy()))
    values = _move(node, source.values)
    if values is None or source.grid is None:
        return None if values is None else replace(source, values=values)
    scale, zero = _move(node, source.grid.scale), _move(node, source.grid.zero)
    assert scale is not None
    assert zero is not None
    grid = Grid(np.asarray(scale, np.float32), np.asarray(zero, np.int64), source.grid.codes)
    return replace(source, values=values, grid=grid)


def _move(node: ir.Node, array: Array) -> Array | None:
    """What `node`, one of _MOVES but Cast, makes of `array`; None if inputs of the graph decide."""
    if node.op_type == "Identity":
        return array
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        return np.transpose(array, perm.as_ints() if perm else None)
    if node.op_type == "Flatten":
        axis = node.attributes.get("axis")
        split = 1 if axis is None else axis.as_int()
        return array.reshape(int(np.prod(array.shape[:split])), -1)
    if node.op_type == "Slice":
        return _sliced(node, array)
    dims = _integers(node, "axes")
    if node.op_type == "Reshape":
        if dims is None:
            return None
        keep_zero = node.attributes.get("allowzero")
        if keep_zero is None or not keep_zero.as_int():
            dims = [array.shape[i] if dim == 0 else dim for i, dim in enumerate(dims)]
        return array.reshape(dims)
    if node.op_type == "Unsqueeze":
        return None if dims is None else np.expand_dims(array, tuple(dims))
    if dims is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return None
    return np.squeeze(array, None if dims is None else tuple(dims))


def _sliced(node: ir.Node, array: Array) -> Array | None:
    given = [_integers_at(node, index) for index in range(1, len(node.inputs))]
    computed = (v is not None and n is None for v, n in zip(node.inputs[1:], given, strict=True))
    if any(computed):
        return None
    starts, ends, axes, steps = (*given, None, None)[:4]
    assert starts is not None
    assert ends is not None
    window = [slice(None)] * array.ndim
    for n, (start, end) in enumerate(zip(starts, ends, strict=True)):
        window[axes[n] if axes else n] = slice(start, end, steps[n] if steps else 1)
    return array[tuple(window)]


def _integers(node: ir.Node, attribute: str) -> list[int] | None:
    """Those of input 1, which before opset 13 were an attribute."""
    if attribute in node.attributes:
        return list(node.attributes[attribute].as_ints())
    return _integers_at(node, 1)


def _integers_at(node: ir.Node, index: int) -> list[int] | None:
    """Those of a constant input; None if it is absent or computed."""
    constant = evaluate(node.inputs[index]) if len(node.inputs) > index else None
    return None if constant is None else [int(n) for n in constant.values.reshape(-1)]
