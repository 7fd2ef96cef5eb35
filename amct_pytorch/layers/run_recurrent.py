"""Running an LSTM or GRU of one layer on given states, and on other weights than its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # (h,) of a GRU, (h, c) of an LSTM: [1, B, H] each


def initial_state(name: str, module: Any, x: Tensor, hx: Any) -> State:
    """The state that a call begins with, zeros for None; RuntimeError for an unbatched input."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected an input tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise RuntimeError(f"{name}: expected an input of 3 dimensions, got {list(x.shape)}")
    if hx is not None:
        return tuple(hx) if isinstance(module, nn.LSTM) else (hx,)
    zeros = x.new_zeros(1, x.shape[0 if module.batch_first else 1], module.hidden_size)
    return (zeros, zeros) if isinstance(module, nn.LSTM) else (zeros,)


def recurrent_weights(module: Any) -> list[Tensor]:
    """weight_ih, weight_hh and, if there are any, bias_ih and bias_hh."""
    keys = ["weight_ih_l0", "weight_hh_l0"]
    keys += ["bias_ih_l0", "bias_hh_l0"] if module.bias else []
    return [getattr(module, key) for key in keys]


def run_recurrent(
    module: Any, x: Tensor, state: State, weights: list[Tensor]
) -> tuple[Tensor, State]:
    """torch's own LSTM or GRU on the given weights."""
    if isinstance(module, nn.LSTM):
        output, h, c = torch._VF.lstm(
            x, list(state), weights, module.bias, 1, 0.0, False, False, module.batch_first
        )
        return output, (h, c)
    output, h = torch._VF.gru(
        x, state[0], weights, module.bias, 1, 0.0, False, False, module.batch_first
    )
    return output, (h,)


def hidden_states(module: Any, state: State, output: Tensor) -> Tensor:
    """What the steps of a call begin with, [T, B, H]: its first state and all but its last output.

    These are the values that the NPU quantizes with the factors of the hidden state.
    """
    steps = output.transpose(0, 1) if module.batch_first else output
    return torch.cat([state[0], steps[:-1]])
