"""What LSTMQAT and GRUQAT have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....layers.learned_weight import WeightOptions
from ....layers.recurrent import HIDDEN, RECURRENT, QuantizedRecurrence
from ....layers.run_recurrent import State, initial_state, recurrent_weights, run_recurrent
from .base import QuantizedForm
from .config import ModuleConfig, read_config
from .qdq import quantize_dequantize

ONLY = {"num_layers": 1, "bidirectional": False, "dropout": 0.0, "proj_size": 0}


class RecurrentQAT(QuantizedForm, QuantizedRecurrence):
    """A quantized LSTM or GRU.

    In training the hidden state is quantized at every step; in evaluation and in the exported
    graph, where one node is the whole sequence, before the first step only.
    """

    weight_ih_l0: Tensor

    def add_quantizers(self, config: Mapping[str, Any] | None) -> None:
        name = type(self).__name__
        self.config: ModuleConfig = read_config(name, config)
        for key, value in ONLY.items():
            if getattr(self, key) != value:
                raise RuntimeError(f"{name}: {key}: expected {value}, got {getattr(self, key)}")
        if not self.config.retrain_enable:
            return
        data = self.config.retrain_data_config
        self.add_input(data)
        without = {"clip_max": None, "clip_min": None, "fixed_min": False}  # those are of the input
        self.add_input(data.model_copy(update=without), HIDDEN)
        settings = self.config.retrain_weight_config
        self.add_gates(
            self,
            WeightOptions(
                channel_wise=settings.channel_wise is not False,
                learned=settings.weights_retrain_algo == "ulq_retrain",
                reciprocal=settings.s_rec_flag,
            ),
        )
        for prefix in ("wts", RECURRENT):
            scales = getattr(self, f"{prefix}_scales").detach()
            self.register_buffer(f"{prefix}_scales_deploy", scales.clone())
            zeros = torch.zeros_like(scales, dtype=torch.int8)
            self.register_buffer(f"{prefix}_offsets_deploy", zeros)
        self.to(self.weight_ih_l0.device)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Output and last state, in the form of torch's."""
        if not self.config.retrain_enable:
            result: tuple[Tensor, Any] = self.FLOAT.forward(self, input, hx)
            return result
        lstm = isinstance(self, nn.LSTM)
        state = initial_state(type(self).__name__, self, input, hx)
        exporting = torch.onnx.is_in_onnx_export()
        if not exporting:
            self.observe_both(self, input, state)
        if self.training and not exporting:
            output, last = self.trained(self, input, state)
        else:
            output, last = self._as_exported(input, state)
        return output, last if lstm else last[0]

    @torch.no_grad()
    def settle(self) -> None:
        if self.config.retrain_enable:
            super().settle()
            for prefix, weight in zip(("wts", RECURRENT), recurrent_weights(self), strict=False):
                scale = self.weight_scale(self.rows(self, weight), prefix)
                getattr(self, f"{prefix}_scales_deploy").copy_(scale)

    def _as_exported(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The whole sequence on quantized weights, behind quantized input and initial state."""
        x, h = self.quantized(x), self.quantized(state[0], HIDDEN)
        w_ih, w_hh, *biases = recurrent_weights(self)
        weights = [self._weight(w_ih, "wts"), self._weight(w_hh, RECURRENT), *biases]
        return run_recurrent(self, x, (h, *state[1:]), weights)

    def _weight(self, weight: Tensor, prefix: str) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            with torch.no_grad():
                scale = self.weight_scale(self.rows(self, weight), prefix)
                getattr(self, f"{prefix}_scales_deploy").copy_(scale)
            return self.fake_weight(self, weight, prefix)
        scale = getattr(self, f"{prefix}_scales_deploy")
        offset = getattr(self, f"{prefix}_offsets_deploy")
        rows = quantize_dequantize(self.rows(self, weight), scale, offset, 0)
        return rows.reshape(weight.shape)
