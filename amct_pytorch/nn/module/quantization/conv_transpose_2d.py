"""The quantized form of torch.nn.ConvTranspose2d."""

from __future__ import annotations

from torch import nn

from .convolution import QATConvTranspose


class ConvTranspose2dQAT(QATConvTranspose, nn.ConvTranspose2d):
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
