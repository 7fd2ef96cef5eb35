"""Executes the LSTM and GRU of a deploy model: integers up to each step's two dequantizations.

At every step the input and the hidden state are quantized, each with factors of its own. The
activations, the cell state and the hidden state that a step hands on are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._binary import host
from .integer_op import Array, IntegerOp, int32, quantized, unpacked

Float = NDArray[np.float32]
# (gates of the input, gates of the hidden state, hidden state) -> the next hidden state
Step = Callable[[Float, Float, Float], Float]
BITS = {2: 8, 6: 16}  # by quant_dtype


class BasicLSTMInplaceFillWindowCache(IntegerOp):
    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        h: Array,
        c: Array,
        b: Array,
        lengths: None,
        clean_cache: None,
        words: Array,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        cell: Float = c[0]

        def step(of_x: Float, of_h: Float, hidden: Float) -> Float:
            nonlocal cell
            i, o, f, g = np.split(of_x + of_h, 4, axis=-1)
            cell = (_sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)).astype(np.float32)
            return _sigmoid(o) * np.tanh(cell)

        y, last = _unrolled(x, w, r, h, b, words, step, attributes)
        return y, last, cell[None]


class BasicGRUInplaceFillWindowCache(IntegerOp):
    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        h: Array,
        b: Array,
        lengths: None,
        clean_cache: None,
        words: Array,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        def step(of_x: Float, of_h: Float, hidden: Float) -> Float:
            (zx, rx, nx), (zh, rh, nh) = (np.split(gates, 3, axis=-1) for gates in (of_x, of_h))
            update, reset = _sigmoid(zx + zh), _sigmoid(rx + rh)
            return (1 - update) * np.tanh(nx + reset * nh) + update * hidden

        return _unrolled(x, w, r, h, b, words, step, attributes)


def _unrolled(
    x: Array,
    w: Array,
    r: Array,
    h: Array,
    b: Array,
    words: Array,
    step: Step,
    attributes: dict[str, Any],
) -> tuple[Float, Float]:
    """Y [T, 1, B, H] and Y_h [1, B, H]."""
    scales, _, _ = host.unpack_dequant_words(words)
    scale_x, scale_h = np.split(scales.repeat(b.size // scales.size), 2)
    bias_x, bias_h = np.split(b[0], 2)
    bits = BITS[attributes["quant_dtype"]]

    def gates(values: Array, weight: Array, bias: Array, scale: Float, of: str) -> Float:
        inverse, offset = attributes[f"quant_scale_{of}"], attributes[f"quant_offset_{of}"]
        codes = quantized(values, inverse, offset, bits) - np.float32(offset)
        # In float64 every sum below 2^53 is exact.
        weights = unpacked(weight, 2, values.shape[-1])[0]
        sums = codes.astype(np.float64) @ weights.T + bias
        return int32(sums).astype(np.float32) * scale

    hidden: Float = h[0]
    outputs = []
    for values in x:
        of_x = gates(values, w, bias_x, scale_x, "x")
        of_h = gates(hidden, r, bias_h, scale_h, "h")
        hidden = step(of_x, of_h, hidden)
        outputs.append(hidden)
    return np.stack(outputs)[:, None], hidden[None]


def _sigmoid(x: Float) -> Float:
    half = np.float32(0.5)
    result: Float = half + half * np.tanh(half * x)  # without an exp that overflows
    return result
