"""The quantized form of torch.nn.ConvTranspose1d."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .base import PaddingMode, QATLayer


class ConvTranspose1dQAT(QATLayer, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with quantized input and weight.

    Takes the arguments of `torch.nn.ConvTranspose1d` (output_padding last)
    and `config`, whose keys are explained in docs/qat.md. The input has 3 dimensions.
    Raises ValueError for a padding_mode other than "zeros".

    >>> import torch
    >>> layer = ConvTranspose1dQAT(3, 8, 3, config={"retrain_data_config": {"batch_num": 2}})
    >>> layer(torch.randn(2, 3, 16)).shape
    torch.Size([2, 8, 18])
    """

    FLOAT = nn.ConvTranspose1d
    RANKS = (3,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        config: Mapping[str, Any] | None = None,
        output_padding: int | tuple[int] = 0,
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
