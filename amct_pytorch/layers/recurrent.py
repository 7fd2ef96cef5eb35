"""LSTM and GRU that are trained to be quantized.

In training the input and, at every step, the hidden state are fake-quantized, as the NPU does it;
weights and biases receive gradients through all steps. In evaluation the layer computes what the
exported fake_quant graph computes: quantized constants behind a quantized input and a quantized
initial state, and between the steps the hidden state as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..ops.fake_quantize import fake_quantize
from .gradient import with_gradient_of
from .integers import bias_codes, dequant_scale, to_half_precision
from .learned_range import LearnedRange
from .learned_weight import LearnedWeight, WeightOptions
from .range_init import RangeOptions

State = tuple[Tensor, ...]  # (h,) of a GRU, (h, c) of an LSTM: [1, B, H] each
HIDDEN, RECURRENT = "acts_h", "rec_wts"  # prefixes beside "acts" and "wts"


@dataclass(frozen=True)
class RecurrentFactors:
    """The factors of an LSTM or GRU in the order of torch's gates: float32 and int32 tensors."""

    scale_d: Tensor
    offset_d: Tensor
    scale_w: Tensor  # [G] or [G * H]
    scale_h: Tensor
    offset_h: Tensor
    scale_r: Tensor  # as scale_w


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
            steps = output.transpose(0, 1) if module.batch_first else output
            self.observe_input(torch.cat([state[0], steps[:-1]]), HIDDEN)

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
        bits = self.range_init().options.num_bits
        w_ih, w_hh, *biases = recurrent_weights(module)
        deq_x = dequant_scale(factors.scale_w, factors.scale_d, force_fp16)
        deq_h = dequant_scale(factors.scale_r, factors.scale_h, force_fp16)
        weights = [
            self._by_codes(module, w_ih, factors.scale_w, deq_x / factors.scale_d, force_fp16),
            self._by_codes(module, w_hh, factors.scale_r, deq_h / factors.scale_h, force_fp16),
        ]
        for bias, deq_scale in zip(biases, (deq_x, deq_h), strict=False):
            by_row = deq_scale.repeat_interleave(len(bias) // deq_scale.numel())
            weights.append((bias_codes(bias, by_row) * by_row.double()).float())
        x = fake_quantize(x.float(), factors.scale_d, factors.offset_d, bits)
        h = fake_quantize(state[0].float(), factors.scale_h, factors.offset_h, bits)
        rest = tuple(s.float() for s in state[1:])
        with torch.autocast(x.device.type, enabled=False):
            return run_recurrent(module, x, (h, *rest), weights)

    @torch.no_grad()
    def recurrent_factors(self, module: Any, force_fp16: bool = False) -> RecurrentFactors:
        """The factors of the present state; nothing is changed."""
        scale_d, offset_d = self.range_factors()
        scale_h, offset_h = self.range_factors(HIDDEN)
        if force_fp16:
            scale_d, scale_h = to_half_precision(scale_d), to_half_precision(scale_h)
        w_ih, w_hh = (self.rows(module, w.detach()) for w in recurrent_weights(module)[:2])
        scale_w, scale_r = self.weight_scale(w_ih), self.weight_scale(w_hh, RECURRENT)
        return RecurrentFactors(scale_d, offset_d, scale_w, scale_h, offset_h, scale_r)

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
            output, last = output.to(x.dtype), tuple(s.to(x.dtype) for s in last)
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

    def _by_codes(
        self, module: Any, weight: Tensor, scale: Tensor, truncated: Tensor, force_fp16: bool
    ) -> Tensor:
        rows = self.rows(module, weight.detach())
        bits = self.wts_options.num_bits
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        values = fake_quantize(rows.float(), scale, zeros, bits, 0)
        if force_fp16:  # the codes under the scale that the truncated product leaves
            values = torch.round(values / scale[:, None]) * truncated[:, None]
        return values.reshape(weight.shape)


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
