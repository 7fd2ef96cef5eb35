"""What stands for a BatchNorm that was folded into the convolution before it."""

from __future__ import annotations

from typing import Any

from torch import nn


class FoldedBatchNorm(nn.Identity):
    """Passes its input on, and has the attributes of the BatchNorm: models read `weight.dtype`.

    >>> folded = FoldedBatchNorm(nn.BatchNorm2d(3))
    >>> folded.num_features, len(list(folded.parameters()))
    (3, 0)
    """

    def __init__(self, batch_norm: nn.Module) -> None:
        super().__init__()
        self.__dict__["batch_norm"] = batch_norm  # not a child: it is no part of the model any more

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            batch_norm = self.__dict__.get("batch_norm")
            if batch_norm is None:  # half unpickled
                raise
            return getattr(batch_norm, name)
