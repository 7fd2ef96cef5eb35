"""What stands for a layer when the quantized model is simulated in torch.

A simulated layer computes what the fake_quant graph computes: integer-valued float activations
and weights, one multiplication by the dequantization scale behind the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import AmctLayer
from .dmq import balanced_input
from .integers import Integers
from .run import output_size


class SimulatedLayer(AmctLayer):
    """Computes (layer(q_x - offset_d) with integer weights and bias) * deq_scale.

    `enabled = False` runs the layer as it came. Arithmetic is float32, also under autocast and in
    a model that was turned to another dtype; float16 inputs give float16 outputs. With `inverse`
    (see `dmq.inverse_factors`) it quantizes the input times that, which its integers are for.
    """

    def __init__(
        self, name: str, sub_module: nn.Module, integers: Integers, inverse: Tensor | None = None
    ) -> None:
        super().__init__(name)
        self.sub_module = sub_module
        self.integers = integers
        self.inverse = inverse
        self.enabled = True

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.sub_module(*args, **kwargs)
        return self.quantized(*args, **kwargs)

    def quantized(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the quantized layer, whether it is enabled or not."""
        x = self.to_quantize(args, kwargs)
        integers = self.integers.to(x.device)
        return integers.run(self.sub_module, x, output_size(self.sub_module, args, kwargs))

    def to_quantize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The activation that is quantized in a call with these arguments."""
        x = self.first_input(args, kwargs)
        return x if self.inverse is None else balanced_input(x, self.inverse)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SimulatedLayer:
        """`model.half()` and its like: the integers move, but keep their dtypes."""
        self.sub_module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.integers = self.integers.to(fn(self.integers.deq_scale).device)
        if self.inverse is not None:
            self.inverse = self.inverse.to(self.integers.deq_scale.device)
        return self
