"""The gates of LSTM and GRU, whose order differs between torch and ONNX.

Weights, biases and their factors have the gates in a row, each with the rows of the hidden state:
[G * H, ...]. LSTM is i, f, g, o in torch and i, o, f, c in ONNX; GRU is r, z, n and z, r, h.
Records and exported graphs hold the order of ONNX.
"""

from __future__ import annotations

from torch import Tensor

# The gates of ONNX in its order, as indices of torch.
TORCH_GATE = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def gates_to_onnx(rows: Tensor, kind: str) -> Tensor:
    """`rows` [G * H, ...] or [G, ...] of torch, with the gates in the order of ONNX.

    >>> import torch
    >>> gates_to_onnx(torch.tensor([0.1, 0.2, 0.3, 0.4]), "LSTM")
    tensor([0.1000, 0.4000, 0.2000, 0.3000])
    """
    return _chosen(rows, TORCH_GATE[kind])


def gates_to_torch(rows: Tensor, kind: str) -> Tensor:
    """The inverse of `gates_to_onnx`.

    >>> import torch
    >>> gates_to_torch(torch.tensor([0.1, 0.4, 0.2, 0.3]), "LSTM")
    tensor([0.1000, 0.2000, 0.3000, 0.4000])
    """
    order = TORCH_GATE[kind]
    return _chosen(rows, tuple(order.index(gate) for gate in range(len(order))))


def _chosen(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    gates = rows.reshape(len(order), -1, *rows.shape[1:])
    return gates[list(order)].reshape(rows.shape)
