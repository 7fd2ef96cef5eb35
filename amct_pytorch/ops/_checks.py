"""Argument checks of the op functions: a wrong type is a TypeError that names the argument."""

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16)
CODES = (torch.int8, torch.int16)


def check_dtype(name: str, value: object, allowed: tuple[torch.dtype, ...] = FLOATING) -> None:
    """Raises TypeError unless `value` is a tensor of one of the dtypes `allowed`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in allowed:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        got = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected dtype {expected}, got {got}")


def check_factors(scale: object, offset: object) -> None:
    """Raises TypeError unless `scale` is a float32 and `offset` an int32 tensor."""
    check_dtype("scale", scale, (torch.float32,))
    check_dtype("offset", offset, (torch.int32,))
