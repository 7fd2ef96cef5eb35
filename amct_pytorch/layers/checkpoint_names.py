"""Checkpoints of the Ascend toolkit: which of its names mean nothing here.

| name under the layer's path | here |
|---|---|
| quant_module.replaced_module.*, bn_module.* | the same |
| quant_module.acts_clip_max, acts_clip_min, ..._pre, acts_scale, acts_offset | the same |
| quant_module.wts_scales, wts_offsets | the same |
| quant_module.cur_batch, prune_cur_batch, s_rec_flag, wts_mask | not kept: nothing uses them |
| quant_module.acts_comp_reuse.* | not kept: it repeats the layer that shares its range |
| scale_w, offset_w, record_module.* | not kept: factors are computed from the present state |
| (none) | quant_module.init_module.batches_seen: taken as done if there are clips |
| (none) | shift_search.*: begins anew |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

_UNUSED = re.compile(
    r"quant_module\.(cur_batch|prune_cur_batch|s_rec_flag|wts_mask|acts_comp_reuse\..*)"
    r"|scale_w|offset_w|record_module\..*"
)
_RANGE = re.compile(r"quant_module\.acts_(clip_(max|min)(_pre)?|scale|offset)")
_PROGRESS = re.compile(
    r"quant_module\.\w*init_module\.batches_seen|shift_search\.(errors|batches_seen)"
)


def adopt(state: dict[str, Any], prefix: str, own: Mapping[str, Any]) -> None:
    """Makes `state` fit a layer that has the state `own`, in place."""
    for key in [k for k in state if k.startswith(prefix) and k not in own]:
        if _UNUSED.fullmatch(key.removeprefix(prefix)):
            del state[key]
    if dropped := [k for k in state if k not in own and _RANGE.fullmatch(k.removeprefix(prefix))]:
        for key in dropped:
            del state[key]
        text = (
            "%s: its own clips in the checkpoint are not kept: it shares the range of another layer"
        )
        logger.warning(text, prefix.rstrip("."))
    for key in own.keys() - state.keys():
        if _PROGRESS.fullmatch(key.removeprefix(prefix)):
            state[key] = torch.zeros_like(own[key])
