"""The quantized form of torch.nn.ConvTranspose1d."""

from __future__ import annotations

from torch import nn

from .convolution import QATConvTranspose


class ConvTranspose1dQAT(QATConvTranspose, nn.ConvTranspose1d):
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
