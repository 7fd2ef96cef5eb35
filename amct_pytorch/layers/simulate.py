"""What stands for a layer when the quantized model is simulated in torch.

A simulated layer computes what the fake_quant graph computes: integer-valued float activations
and weights, one multiplication by the dequantization scale behind the layer; LSTM and GRU have the
same numbers already multiplied by their scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .base import AmctLayer
from .dmq import balanced_input
from .integers import Integers
from .recurrent_constants import RecurrentConstants
from .run import output_size
from .run_recurrent import initial_state


class Simulated(AmctLayer):
    """Runs the quantized layer, or with `enabled = False` the layer as it came.

    Arithmetic is float32, also under autocast and in a model that was turned to another dtype;
    float16 inputs give float16 outputs.
    """

    integers: Integers | RecurrentConstants

    def __init__(
        self, name: str, sub_module: nn.Module, integers: Integers | RecurrentConstants
    ) -> None:
        super().__init__(name)
        self.sub_module = sub_module
        self.integers = integers
        self.enabled = True

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.sub_module(*args, **kwargs)
        return self.quantized(*args, **kwargs)

    def quantized(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the quantized layer, whether it is enabled or not."""
        raise NotImplementedError

    def to_quantize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The activation that is quantized in a call with these arguments."""
        return self.first_input(args, kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`model.half()` and its like: the integers move, but keep their dtypes."""
        self.sub_module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.integers = self.integers.to(fn(self.integers.factors.scale_d).device)
        return self


class SimulatedLayer(Simulated):
    """Computes (layer(q_x - offset_d) with integer weights and bias) * deq_scale.

    With `inverse` (see `dmq.inverse_factors`) the input is multiplied by it before quantization.
    """

    integers: Integers

    def __init__(
        self, name: str, sub_module: nn.Module, integers: Integers, inverse: Tensor | None = None
    ) -> None:
        super().__init__(name, sub_module, integers)
        self.inverse = inverse

    def quantized(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.to_quantize(args, kwargs)
        integers = self.integers.to(x.device)
        return integers.run(self.sub_module, x, output_size(self.sub_module, args, kwargs))

    def to_quantize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x = self.first_input(args, kwargs)
        return x if self.inverse is None else balanced_input(x, self.inverse)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.inverse is not None:
            self.inverse = self.inverse.to(self.integers.deq_scale.device)
        return self


class SimulatedRecurrent(Simulated):
    """An LSTM or GRU with quantized input, first hidden state and weights."""

    integers: RecurrentConstants

    def quantized(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        module = self.sub_module
        state = initial_state(self.name, module, input, hx)
        output, last = self.integers.to(input.device).run(module, input, state)
        return output, last if isinstance(module, nn.LSTM) else last[0]
