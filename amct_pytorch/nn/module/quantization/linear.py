"""The quantized form of torch.nn.Linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .base import QATLayer


class LinearQAT(QATLayer, nn.Linear):
    """`torch.nn.Linear` with quantized input and weight.

    Takes the arguments of `torch.nn.Linear` and `config`, whose keys are explained in
    docs/qat.md. The weight has one scale; RuntimeError for channel_wise true.

    >>> import torch
    >>> layer = LinearQAT(4, 2, config={"retrain_data_config": {"batch_num": 2}})
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 2])
    """

    FLOAT = nn.Linear
    CHANNEL_WISE = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.add_quantizers(config)
