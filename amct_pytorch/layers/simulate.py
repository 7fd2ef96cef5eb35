"""What stands for a layer when the quantized model is simulated in torch.

A simulated layer computes what the fake_quant graph computes: integer-valued float activations
and weights, one multiplication by the dequantization scale behind the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.fake_quantize import dequantize, quantize
from .base import AmctLayer


class SimulatedLayer(AmctLayer):
    """Computes (layer(q_x - offset_d) with integer weights and bias) * deq_scale.

    With a shift N the integers pass through int16 as clip(floor(y / 2^N)) * 2^N.

    `enabled = False` runs the layer as it came. Arithmetic is float32, also under autocast and in
    a model that was turned to another dtype; float16 inputs give float16 outputs.
    """

    scale: Tensor
    offset: Tensor
    deq_scale: Tensor
    step: Tensor | None  # 2^N

    def __init__(
        self,
        name: str,
        sub_module: nn.Module,
        scale: float,
        offset: int,
        act_bits: int,
        weight: Tensor | None,
        bias: Tensor | None,
        deq_scale: Tensor,
        shift: Tensor | None,
    ) -> None:
        super().__init__(name)
        self.sub_module = sub_module
        self.enabled = True
        self.act_bits = act_bits
        self.integer = _with_integers(sub_module, weight, bias)
        device = next((p.device for p in sub_module.parameters()), torch.device("cpu"))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32, device=device))
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.int32, device=device))
        self.register_buffer("deq_scale", deq_scale.to(device))
        step = None if shift is None else (1 << shift.to(device, torch.int32)).to(torch.float32)
        self.register_buffer("step", step)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.sub_module(*args, **kwargs)
        return self.quantized(*args, **kwargs)

    def quantized(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the quantized layer, whether it is enabled or not."""
        x = self.first_input(args, kwargs)
        scale, offset = self.scale.to(x.device), self.offset.to(x.device)
        codes = dequantize(
            quantize(x, scale, offset, self.act_bits), torch.ones_like(scale), offset
        )
        if args:
            args = (codes, *args[1:])
        else:
            kwargs = {**kwargs, "input": codes}
        with torch.autocast(x.device.type, enabled=False):  # sums of integers overflow float16
            output: Tensor = self.integer(*args, **kwargs)
        channel_last = isinstance(self.integer, nn.Linear)
        trailing = 0 if channel_last or self.deq_scale.numel() == 1 else output.dim() - 2
        if self.step is not None:
            step = self.step.to(x.device).reshape(-1, *[1] * trailing)
            output = (output / step).floor().clamp(-32768, 32767) * step
        deq_scale = self.deq_scale.to(x.device).reshape(-1, *[1] * trailing)
        return (output * deq_scale).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SimulatedLayer:
        """`model.half()` and its like: factors and integers move, but keep their dtypes."""
        self.sub_module._apply(fn, recurse)  # type: ignore[no-untyped-call]

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        self.integer._apply(moved, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in list(self._buffers.items()):
            self._buffers[name] = None if tensor is None else moved(tensor)
        return self


def _with_integers(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """A float32 copy of the layer that holds integer-valued weight and bias."""
    if weight is None:
        return copy.deepcopy(module)
    memo: dict[int, Any] = {}
    for key, value in (("weight", weight), ("bias", bias)):
        original = getattr(module, key)
        if original is not None:
            assert value is not None
            # Handed to deepcopy in place of the float parameter, which is thus never copied.
            integers = value.to(original.device, torch.float32)
            memo[id(original)] = nn.Parameter(integers, requires_grad=False)
    return copy.deepcopy(module, memo)
