"""DMQ balancing of one layer: what is observed, how its weight and its input are rescaled.

With a factor f for each input channel the layer computes weight * f of x * fl(1/f). The input is
multiplied by the inverse in float32 rather than divided, in every form of the model alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._checks import check_dtype
from ..ops.dmq import dmq_factor
from .base import AmctLayer
from .calibrate import Calibration
from .finite import is_finite
from .integers import is_transposed


@dataclass
class Balancing(Calibration):
    """Progress of the search for the factors of a model, shared by its layers."""

    balance: dict[str, tuple[float, ...]] = field(default_factory=dict)


class BalanceProbe(AmctLayer):
    """Runs the layer as it is and keeps the range of each channel of its input.

    With the call number `batch_num` the factors are reported; later calls are not looked at.
    """

    def __init__(
        self, name: str, sub_module: nn.Module, migration_strength: float, balancing: Balancing
    ) -> None:
        super().__init__(name)
        self.sub_module = sub_module
        self.migration_strength = migration_strength
        self.balancing = balancing
        self._largest: Tensor | None = None
        balancing.seen[name] = 0

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = self.first_input(args, kwargs)
        batch = f"batch {self.balancing.seen[self.name] + 1} of {self.balancing.batch_num}"
        check_dtype(f"{self.name}: activation ({batch})", x)
        output = self.sub_module(*args, **kwargs)
        if self.balancing.seen[self.name] < self.balancing.batch_num:
            self._observe(x, batch)
        return output

    def _observe(self, x: Tensor, batch: str) -> None:
        balancing = self.balancing
        largest = input_ranges(self.sub_module, x)
        if not is_finite(largest):
            raise RuntimeError(
                f"{self.name}: its input cannot be balanced: it has NaN or infinite values "
                f"({batch})"
            )
        if self._largest is not None:
            largest = torch.maximum(largest, self._largest.to(largest.device))
        if balancing.seen[self.name] + 1 == balancing.batch_num:
            balancing.balance[self.name] = self._factors(largest, batch)
        self._largest = largest
        balancing.seen[self.name] += 1
        if balancing.observed is not None:
            balancing.observed()

    def _factors(self, largest: Tensor, batch: str) -> tuple[float, ...]:
        try:
            weight = weight_ranges(self.sub_module)
            factors = dmq_factor(largest, weight, self.migration_strength).tolist()
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.name}: its input cannot be balanced: {error} ({batch}); remove "
                "dmq_balancer_param from this layer"
            ) from error
        inverse_factors(self.name, self.sub_module, factors)  # raises beyond float16
        return tuple(factors)


class BalancedLayer(AmctLayer):
    """Runs a layer with balanced weights, or what stands for it, on its input times 1/f."""

    def __init__(self, name: str, sub_module: nn.Module, inverse: Tensor) -> None:
        super().__init__(name)
        self.sub_module = sub_module
        self.inverse = inverse

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = balanced_input(self.first_input(args, kwargs), self.inverse)
        if args:
            return self.sub_module(x, *args[1:], **kwargs)
        return self.sub_module(**{**kwargs, "input": x})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BalancedLayer:
        """`model.half()` and its like: the factors move, but keep their dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inverse = self.inverse.to(fn(self.inverse).device)
        return self


def balanced_input(x: Tensor, inverse: Tensor) -> Tensor:
    """`x` times what `inverse_factors` returned, in the dtype of `x`."""
    return (x * inverse.to(x.device)).to(x.dtype)


def input_ranges(module: nn.Module, x: Tensor) -> Tensor:
    """The largest magnitude of each input channel in `x`; zeros where `x` has no elements."""
    channels = x.dim() - 1 - _kernel_rank(module)
    others = [d for d in range(x.dim()) if d != channels]
    if not x.numel():
        return x.new_zeros(x.shape[channels])
    return torch.maximum(x.amax(others), -x.amin(others)) if others else x.abs()


def weight_ranges(module: Any) -> Tensor:
    """The largest magnitude that the weight of `module` has for each input channel."""
    rows = _by_input_channel(module, module.weight.detach())
    return rows.abs().amax((1, 3)).flatten()


def balanced_weight(name: str, module: Any, factors: Sequence[float]) -> Tensor:
    """The weight of `module` times the factor of each input channel, in its dtype.

    Raises RuntimeError, naming the layer, where the product leaves the range of the dtype.
    """
    weight: Tensor = module.weight.detach()
    rows = _by_input_channel(module, weight)
    factor = torch.tensor(factors, dtype=torch.float32, device=weight.device)
    products = rows * factor.reshape(rows.shape[0], 1, rows.shape[2], 1)
    balanced = products.to(weight.dtype).reshape(weight.shape)
    if is_finite(weight) and not is_finite(balanced):
        raise RuntimeError(
            f"{name}: its balanced weight has values beyond {_dtype(weight)}; remove "
            "dmq_balancer_param from this layer, or lower it"
        )
    return balanced


def inverse_factors(name: str, module: Any, factors: Sequence[float]) -> Tensor:
    """fl(1/f), shaped against the input of the layer: [C, 1...], of Linear [C].

    It is float32, as the exported graphs have it also for a bfloat16 layer; rounded once more to
    float16 for a layer of that type. Raises RuntimeError, naming the layer, where that has no room.
    """
    weight: Tensor = module.weight
    inverse = 1 / torch.tensor(factors, dtype=torch.float32, device=weight.device)
    rounded = inverse.half() if weight.dtype == torch.float16 else inverse
    if not bool((rounded > 0).all()) or not is_finite(rounded):
        raise RuntimeError(
            f"{name}: expected inverse balance factors within float16, got "
            f"{float(inverse.min()):g} to {float(inverse.max()):g}; remove dmq_balancer_param from "
            "this layer, or lower it"
        )
    return rounded.reshape(-1, *[1] * _kernel_rank(module))


def _by_input_channel(module: Any, weight: Tensor) -> Tensor:
    """[groups, rest, Cin/groups, rest] of a weight: group * (Cin/groups) + j is input channel j."""
    if is_transposed(module):  # [Cin, Cout/g, k...]
        return weight.reshape(1, 1, weight.shape[0], -1)
    groups = getattr(module, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _kernel_rank(module: Any) -> int:
    return len(getattr(module, "kernel_size", ()))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
