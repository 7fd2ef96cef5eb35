"""The quantized form of torch.nn.Conv3d."""

from __future__ import annotations

from torch import nn

from .convolution import QATConv


class Conv3dQAT(QATConv, nn.Conv3d):
    """`torch.nn.Conv3d` with quantized input and weight.

    Takes the arguments of `torch.nn.Conv3d`
    and `config`, whose keys are explained in docs/qat.md. The input has 5 dimensions.
    Raises RuntimeError for a padding_mode other than "zeros".

    >>> import torch
    >>> layer = Conv3dQAT(3, 8, 3, config={"retrain_data_config": {"batch_num": 2}})
    >>> layer(torch.randn(2, 3, 6, 6, 6)).shape
    torch.Size([2, 8, 4, 4, 4])
    """

    FLOAT = nn.Conv3d
    RANKS = (5,)

    def check_options(self) -> None:
        """Raises RuntimeError for options that cannot be quantized."""
        if self.padding_mode != "zeros":
            raise RuntimeError(
                f"Conv3dQAT: padding_mode: expected 'zeros', got {self.padding_mode!r}"
            )
        if self.dilation[0] != 1:
            raise RuntimeError(
                f"Conv3dQAT: dilation: expected 1 as the first of 3 entries, got {self.dilation}"
            )
