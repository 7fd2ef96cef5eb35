"""The quantized form of torch.nn.Conv1d."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .base import PaddingMode, QATLayer


class Conv1dQAT(QATLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with quantized input and weight.

    Takes the arguments of `torch.nn.Conv1d`
    and `config`, whose keys are explained in docs/qat.md. The input has 3 dimensions.
    Raises ValueError for a padding_mode other than "zeros".

    >>> import torch
    >>> layer = Conv1dQAT(3, 8, 3, config={"retrain_data_config": {"batch_num": 2}})
    >>> layer(torch.randn(2, 3, 16)).shape
    torch.Size([2, 8, 14])
    """

    FLOAT = nn.Conv1d
    RANKS = (3,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.add_quantizers(config)
