"""The quantized form of torch.nn.ConvTranspose2d."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .base import PaddingMode, QATLayer


class ConvTranspose2dQAT(QATLayer, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with quantized input and weight.

    Takes the arguments of `torch.nn.ConvTranspose2d` (output_padding last)
    and `config`, whose keys are explained in docs/qat.md. The input has 4 dimensions.
    Raises ValueError for a padding_mode other than "zeros".

    >>> import torch
    >>> layer = ConvTranspose2dQAT(3, 8, 3, config={"retrain_data_config": {"batch_num": 2}})
    >>> layer(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 8, 18, 18])
    """

    FLOAT = nn.ConvTranspose2d
    RANKS = (4,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        config: Mapping[str, Any] | None = None,
        output_padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self.add_quantizers(config)
