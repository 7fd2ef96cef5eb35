"""LSTM and GRU that are trained to be quantized.

In training the input and, at every step, the hidden state are fake-quantized, as the NPU does it;
weights and biases receive gradients through all steps. In evaluation the layer computes what the
exported fake_quant graph computes: quantized constants behind a quantized input and a quantized
initial state, and between the steps the hidden state as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .gradient import with_gradient_of
from .integers import to_half_precision
from .learned_range import LearnedRange
from .learned_weight import LearnedWeight, WeightOptions
from .range_init import RangeOptions
from .recurrent_constants import RecurrentFactors, constants_of
from .run_recurrent import (
    State,
    hidden_states,
    initial_state,
    recurrent_weights,
    run_recurrent,
)

HIDDEN, RECURRENT = "acts_h", "rec_wts"  # prefixes beside "acts" and "wts"


class QuantizedRecurrence(LearnedRange, LearnedWeight):
    """The quantizers of an LSTM or GRU and what it computes with them."""

    per_gate: bool
    wts_options: WeightOptions

    def add_recurrence(
        self,
        name: str,
        module: Any,
        of_input: RangeOptions,
        of_hidden: RangeOptions,
        weight: WeightOptions,
    ) -> None:
        """Registers the quantizers for `module`; without channel_wise there is a scale per gate."""
        self.add_range(name, of_input)
        self.add_range(name, of_hidden, HIDDEN)
        self.add_gates(module, weight)

    def add_gates(self, module: Any, weight: WeightOptions) -> None:
        """Registers the quantizers of the weights."""
        self.per_gate = not weight.channel_wise
        by_row = WeightOptions(weight.num_bits, learned=weight.learned)
        for prefix, key in (("wts", "weight_ih_l0"), (RECURRENT, "weight_hh_l0")):
            self.add_weight(self.rows(module, getattr(module, key)), by_row, prefix)

    def observe_both(self, module: Any, x: Tensor, state: State) -> None:
        """Shows the input and all hidden states of one batch to what finds the first ranges."""
        self.observe_input(x)
        if self.range_init(HIDDEN).done:
            return
        with torch.no_grad():
            output, _ = run_recurrent(module, x, state, recurrent_weights(module))
            self.observe_input(hidden_states(module, state, output), HIDDEN)

    def trained(self, module: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Output and last state with fake-quantized input, hidden states and weights."""
        w_ih, w_hh, *biases = recurrent_weights(module)
        b_ih, b_hh = biases or (None, None)
        w_ih = self.fake_weight(module, w_ih, "wts")
        w_hh = self.fake_weight(module, w_hh, RECURRENT)
        steps = F.linear(self.quantize_input(x), w_ih, b_ih)
        steps = steps.transpose(0, 1) if module.batch_first else steps
        step: Callable[..., State] = _lstm_step if isinstance(module, nn.LSTM) else _gru_step
        now = tuple(s.squeeze(0) for s in state)
        outputs = []
        for from_input in steps:
            hidden = F.linear(self.quantize_input(now[0], HIDDEN), w_hh, b_hh)
            now = step(from_input, hidden, now)
            outputs.append(now[0])
        output = torch.stack(outputs, 1 if module.batch_first else 0)
        return output, tuple(s.unsqueeze(0) for s in now)

    @torch.no_grad()
    def evaluated(
        self, module: Any, x: Tensor, state: State, force_fp16: bool = False
    ) -> tuple[Tensor, State]:
        """Output and last state as the fake_quant graph computes them."""
        factors = self.recurrent_factors(module, force_fp16)
        return constants_of(module, factors).run(module, x, state)

    @torch.no_grad()
    def recurrent_factors(self, module: Any, force_fp16: bool = False) -> RecurrentFactors:
        """The factors of the present state; nothing is changed."""
        scale_d, offset_d = self.range_factors()
        scale_h, offset_h = self.range_factors(HIDDEN)
        if force_fp16:
            scale_d, scale_h = to_half_precision(scale_d), to_half_precision(scale_h)
        w_ih, w_hh = (self.rows(module, w.detach()) for w in recurrent_weights(module)[:2])
        scale_w, scale_r = self.weight_scale(w_ih), self.weight_scale(w_hh, RECURRENT)
        return RecurrentFactors(
            scale_d,
            offset_d,
            scale_w,
            scale_h,
            offset_h,
            scale_r,
            act_bits=self.range_init().options.num_bits,
            wts_bits=self.wts_options.num_bits,
            force_fp16=force_fp16,
        )

    def run_quantized(
        self, module: Any, x: Tensor, hx: Any, force_fp16: bool = False
    ) -> tuple[Tensor, Any]:
        """The forward of the layer: output and last state in the form of torch's."""
        lstm = isinstance(module, nn.LSTM)
        state = initial_state(self.range_init().name, module, x, hx)
        self.observe_both(module, x, state)
        if self.training:
            output, last = self.trained(module, x, state)
        else:
            output, last = self.evaluated(module, x, state, force_fp16)
            if torch.is_grad_enabled():
                wanted, states = self.trained(module, x, state)
                output = with_gradient_of(output, wanted)
                last = tuple(with_gradient_of(a, b) for a, b in zip(last, states, strict=True))
        return output, last if lstm else last[0]

    def rows(self, module: Any, weight: Tensor) -> Tensor:
        """[G * H, n], or [G, H * n] where a gate has one scale."""
        gates = 4 if isinstance(module, nn.LSTM) else 3
        return weight.reshape(gates, -1) if self.per_gate else weight

    def fake_weight(self, module: Any, weight: Tensor, prefix: str) -> Tensor:
        """A weight fake-quantized as in training."""
        return self.quantize_weight(self.rows(module, weight), prefix).reshape(weight.shape)


def _lstm_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_hidden).chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    xr, xz, xn = from_input.chunk(3, 1)
    hr, hz, hn = from_hidden.chunk(3, 1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * state[0],)
