"""Scaled dot product attention in plain operations, for opsets that have no form for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

FIRST_OPSET_WITH_ATTENTION = 14


@contextmanager
def plain_attention(opset_version: int) -> Iterator[None]:
    """Puts products and a softmax in the place of `scaled_dot_product_attention` where needed."""
    if opset_version >= FIRST_OPSET_WITH_ATTENTION:
        yield
        return
    with mock.patch.object(F, "scaled_dot_product_attention", _attention):
        yield


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
