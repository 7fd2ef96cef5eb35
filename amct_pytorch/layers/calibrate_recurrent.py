"""What stands for an LSTM or GRU while activations are observed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .calibrate import CalibratedLayer, Calibration, Calibrator, check_activation, why_too_small
from .finite import is_finite
from .run_recurrent import hidden_states, initial_state


class CalibratedRecurrent(CalibratedLayer):
    """Shows the input of the layer to one calibrator and its hidden states to another.

    The hidden states are those that its steps begin with: the initial one and every output but the
    last. The output is the layer's own.
    """

    def __init__(
        self,
        name: str,
        sub_module: nn.Module,
        calibrator: Calibrator,
        of_hidden: Calibrator,
        calibration: Calibration,
    ) -> None:
        super().__init__(name, sub_module, calibrator, calibration)
        self.of_hidden: Calibrator | None = of_hidden

    @torch.no_grad()
    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        state = initial_state(self.name, self.sub_module, input, hx)
        check_activation(self.name, input)
        result: tuple[Tensor, Any] = self.sub_module(input, hx)
        if self.calibrator is not None:
            # The hidden states come first: with the input the layer may be finished. An input that
            # is refused must not leave them counted.
            if is_finite(input):
                self._observe_hidden(hidden_states(self.sub_module, state, result[0]))
            self._observe(input)
        return result

    def _observe_hidden(self, hidden: Tensor) -> None:
        assert self.of_hidden is not None
        name, calibration = self.name, self.calibration
        batch = calibration.seen[name] + 1
        try:
            self.of_hidden.update(hidden)
            if batch < calibration.batch_num:
                return
            scale, offset = self.of_hidden.compute()
        except RuntimeError as error:
            raise RuntimeError(
                f"{name}: its hidden state cannot be calibrated: {error} (batch {batch} of "
                f"{calibration.batch_num})"
            ) from error
        calibration.hidden[name] = float(scale), int(offset)
        if reason := why_too_small("hidden state", hidden, float(scale)):
            calibration.left_float[name] = reason

    def _finish(self, x: Tensor, scale: Tensor, offset: Tensor) -> None:
        of_hidden = self.calibration.left_float.get(self.name)
        super()._finish(x, scale, offset)
        self.of_hidden = None
        if of_hidden is not None:  # one operator does both
            self.calibration.left_float[self.name] = of_hidden
            self.calibration.factors.pop(self.name, None)
