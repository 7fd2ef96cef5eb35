"""LSTM and GRU step by step in numpy: what a record makes of them, in the gate order of torch."""

import numpy as np
import torch
from torch import nn

ONNX_GATES = {
    nn.LSTM: [0, 3, 1, 2],
    nn.GRU: [1, 0, 2],
}  # i, o, f, c of i, f, g, o; z, r, h of r, z, n


def array(tensor):
    return tensor.detach().numpy()


def codes(values, scale, offset, bits=8):
    half = 2 ** (bits - 1)
    inverse = np.float32(1) / np.float32(scale)
    return np.clip(np.rint(values * inverse) + offset, -half, half - 1) - offset


def torch_rows(factors, rnn):
    """Factors of a record as one per row, in the order of torch."""
    order = ONNX_GATES[type(rnn)]
    of_onnx = np.float32(factors).reshape(len(order), -1)
    gates = np.empty_like(of_onnx)
    gates[order] = of_onnx
    return np.repeat(gates, rnn.hidden_size // gates.shape[1], axis=1).reshape(-1)


def s19(scale):
    return (scale.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(rnn, of_x, of_h, h, c):
    """(h, c) after one step; c is None for a GRU."""
    if isinstance(rnn, nn.LSTM):
        i, f, g, o = np.split(of_x + of_h, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (rx, zx, nx), (rh, zh, nh) = np.split(of_x, 3, axis=1), np.split(of_h, 3, axis=1)
    r, z = sigmoid(rx + rh), sigmoid(zx + zh)
    return (1 - z) * np.tanh(nx + r * nh) + z * h, None


def unrolled(rnn, data, gates_of_x, gates_of_h):
    """[outputs, h, c] of the layer, whose gates the two functions compute."""
    x, h, *c = [array(tensor) for tensor in data]
    x = x.swapaxes(0, 1) if rnn.batch_first else x
    h, c = h[0], (c[0][0] if c else None)
    outputs = []
    for x_t in x:
        h, c = step(rnn, gates_of_x(x_t), gates_of_h(h), h, c)
        outputs.append(h)
    y = np.stack(outputs, axis=1 if rnn.batch_first else 0)
    return [y, h[None]] + ([] if c is None else [c[None]])


def loop(rnn, data, record, integers):
    """Outputs of the layer; with `integers` the hidden state is quantized before every step."""
    bits, halves = record.act_bits, []
    for part, scales, scale in (
        ("ih", record.scale_w, record.scale_d),
        ("hh", record.scale_r, record.scale_h),
    ):
        by_row, half = torch_rows(scales, rnn), 2 ** (record.wts_bits - 1)
        weight = array(getattr(rnn, f"weight_{part}_l0"))
        bias = array(getattr(rnn, f"bias_{part}_l0")) if rnn.bias else np.zeros(len(weight))
        deq = by_row * np.float32(scale)
        if record.force_fp16:
            deq = s19(deq)
        weight = np.clip(np.rint(weight / by_row[:, None]), -half, half - 1)
        halves.append((weight, np.rint(bias / deq.astype(np.float64)), deq))

    def gates(quantized, half):
        weight, bias, deq = halves[half]
        return ((quantized @ weight.T + bias) * deq).astype(np.float32)

    def of_x(x):
        return gates(codes(x, record.scale_d, record.offset_d, bits), 0)

    def of_h(h):
        if integers:
            return gates(codes(h, record.scale_h, record.offset_h, bits), 1)
        return gates(h / np.float32(record.scale_h), 1)

    if not integers:  # the graph hands the quantized state on, to a GRU's last sum too
        h = codes(array(data[1]), record.scale_h, record.offset_h, bits)
        h = (h * np.float32(record.scale_h)).astype(np.float32)
        data = [data[0], torch.from_numpy(h), *data[2:]]
    return unrolled(rnn, data, of_x, of_h)
