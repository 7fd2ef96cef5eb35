"""Whether a tensor is free of NaN and infinity."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """True without NaN or infinity. One pass over the extremes, which NaN takes over."""
    if values.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(values.detach().aminmax())).all())
