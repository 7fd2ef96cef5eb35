"""Running a layer on another weight than its own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def output_size(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument `output_size` in a call of `module`, which transposed convolutions have."""
    if not isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return None
    return args[1] if len(args) > 1 else kwargs.get("output_size")


def run_layer(
    module: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_size: list[int] | None = None,
) -> Tensor:
    """What `module` computes of `x` with `weight` and `bias` in the place of its own.

    `module` is of a quantizable type; average pooling has neither. `output_size` is for transposed
    convolutions, as in their forward.
    """
    run: Any
    result: Tensor
    if isinstance(module, nn.Linear):
        result = F.linear(x, weight, bias)  # type: ignore[arg-type]
    elif isinstance(module, nn.AvgPool2d):
        result = module(x)
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        run = (F.conv1d, F.conv2d, F.conv3d)[len(module.kernel_size) - 1]
        result = run(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        run = (F.conv_transpose1d, F.conv_transpose2d)[len(module.kernel_size) - 1]
        sizes: Any = module.stride, module.padding, module.kernel_size
        rank, dilation = len(module.kernel_size), module.dilation
        deconv: Any = module
        padding = deconv._output_padding(x, output_size, *sizes, rank, dilation)
        result = run(
            x, weight, bias, module.stride, module.padding, padding, module.groups, dilation
        )
    else:
        raise TypeError(f"a {type(module).__name__} is not a layer that can be quantized")
    return result
