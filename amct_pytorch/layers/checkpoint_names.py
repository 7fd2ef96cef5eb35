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
"""

from __future__ import annotations

import re
from typing import Any

import torch

_UNUSED = re.compile(
    r"quant_module\.(cur_batch|prune_cur_batch|s_rec_flag|wts_mask|acts_comp_reuse\..*)"
    r"|scale_w|offset_w|record_module\..*"
)
_PROGRESS = re.compile(r"quant_module\.\w*init_module\.batches_seen")


def adopt(state: dict[str, Any], prefix: str, own: set[str]) -> None:
    """Makes `state` fit a layer that has the names `own`, in place."""
    for key in [k for k in state if k.startswith(prefix) and k not in own]:
        if _UNUSED.fullmatch(key.removeprefix(prefix)):
            del state[key]
    for key in own - state.keys():
        if _PROGRESS.fullmatch(key.removeprefix(prefix)):
            state[key] = torch.zeros((), dtype=torch.int64)
