"""Reads the LSTM and GRU of a QuantizeLinear/DequantizeLinear graph: their factors.

A quantized one has a pair at its input and one at its initial hidden state, and both its weights
come through DequantizeLinear. Exporters reorder the gates behind it, with their scales.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.recurrent import GATES, locate_recurrent
from ..graph.site import UnsupportedSiteError
from ..records import LayerRecord
from .qdq_constants import Grid, evaluate
from .qdq_layer import (
    check_symmetric,
    name_after_constants,
    pair_behind,
    replace_by_constant,
    take_pair,
)

RNN = "RNN"  # has no quantized form
ACTIVATIONS = {"X": 0, "initial_h": 5}  # inputs of the node, by their names in ONNX
WEIGHTS = {"W": 1, "R": 2}
BIAS = 3


def read_recurrent(node: ir.Node) -> LayerRecord | None:
    """Makes an LSTM or GRU float and names it; its factors, or None if it is not quantized.

    Raises RuntimeError, naming the node, for one that has no deploy form.
    """
    inputs = dict(enumerate(node.inputs))
    constants = {index: evaluate(inputs.get(index)) for index in (*WEIGHTS.values(), BIAS)}
    pairs, grids = {}, {}
    for part, index in ACTIVATIONS.items():
        if (pair := pair_behind(inputs.get(index))) is not None:
            pairs[part] = pair
    for part, index in WEIGHTS.items():
        if (constant := constants[index]) is not None and constant.grid is not None:
            grids[part] = constant.grid
    if not pairs and not grids:
        return None
    name = name_after_constants(node)
    if node.op_type == RNN:
        raise RuntimeError(
            f"{name}: a quantized {RNN} cannot be converted; export the model with it in float"
        )
    for index, constant in constants.items():
        if constant is not None:
            replace_by_constant(node, index, constant)
    try:
        locate_recurrent(node)
    except UnsupportedSiteError as error:
        raise RuntimeError(f"{name}: cannot be quantized: {error}") from None
    if missing := [part for part in (*ACTIVATIONS, *WEIGHTS) if part not in pairs | grids]:
        raise RuntimeError(
            f"{name}: expected X, initial_h, W and R quantized, or none of them; not quantized: "
            f"{', '.join(missing)}"
        )
    return _record(node, pairs, grids)


def _record(node: ir.Node, pairs: dict[str, ir.Node], grids: dict[str, Grid]) -> LayerRecord:
    """The factors of a node whose weights are constants already; takes the pairs off it."""
    name = str(node.name)
    for part, grid in grids.items():
        check_symmetric(f"{name}: {part}", grid)
    taken = {part: take_pair(node, ACTIVATIONS[part], pair) for part, pair in pairs.items()}
    (scale_d, offset_d, bits_x), (scale_h, offset_h, bits_h) = taken["X"], taken["initial_h"]
    act_bits = _equal_bits(name, {"X": bits_x, "initial_h": bits_h})
    wts_bits = _equal_bits(name, {part: grid.bits for part, grid in grids.items()})
    scales = [_by_row(f"{name}: {part}", grid) for part, grid in grids.items()]
    gates = [by_row.reshape(GATES[node.op_type], -1) for by_row in scales]
    if all(np.all(by_gate == by_gate[:, :1]) for by_gate in gates):
        scales = [by_gate[:, 0] for by_gate in gates]
    scale_w, scale_r = (tuple(scale.tolist()) for scale in scales)
    return LayerRecord(
        scale_d=scale_d,
        offset_d=offset_d,
        scale_w=scale_w,
        offset_w=(0,) * len(scale_w),
        scale_h=scale_h,
        offset_h=offset_h,
        scale_r=scale_r,
        offset_r=(0,) * len(scale_r),
        act_type=f"INT{act_bits}",
        wts_type=f"INT{wts_bits}",
    )


def _equal_bits(name: str, bits: dict[str, int]) -> int:
    (first, one), (second, other) = bits.items()
    if one != other:
        raise RuntimeError(
            f"{name}: expected {first} and {second} in one number of bits, got {one} and {other}"
        )
    return one


def _by_row(name: str, grid: Grid) -> NDArray[np.float32]:
    """The scale of every row, of weights [1, G*H, n]."""
    rows: NDArray[np.float32] = grid.scale[0]
    if not np.all(rows == rows[:, :1]):
        raise RuntimeError(
            f"{name}: expected one scale per row or per gate, found several within a row (the axis "
            "of its DequantizeLinear?)"
        )
    scales: NDArray[np.float32] = rows[:, 0]
    return scales
