"""Functions of torch in plain operations, where an exporter has no form of them or a wrong one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.modules.utils import _pair

FIRST_OPSET_WITH_ATTENTION = 14
_avg_pool2d = F.avg_pool2d


@contextmanager
def plain_operations(opset_version: int) -> Iterator[None]:
    """Exports under it meet plain operations for attention and for unusual average pooling."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernel has no ONNX form
    plain: dict[str, Any] = {"avg_pool2d": _pooling}
    if opset_version < FIRST_OPSET_WITH_ATTENTION:
        plain["scaled_dot_product_attention"] = _attention
    try:
        with mock.patch.multiple(F, **plain):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _pooling(
    input: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The exporters drop `divisor_override` without a word; here it is a product."""
    if divisor_override is None:
        factor = 1.0
    elif ceil_mode:
        raise NotImplementedError("avg_pool2d with ceil_mode and divisor_override has no ONNX form")
    else:
        rows, columns = _pair(kernel_size)
        count_include_pad, factor = True, rows * columns / divisor_override
    average: Tensor = _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return average if divisor_override is None else average * factor


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query @ key^T * scale + mask) @ value, as torch documents it."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        rows = torch.arange(query.shape[-2], device=query.device).unsqueeze(1)
        attn_mask = rows >= torch.arange(key.shape[-2], device=query.device)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value
