"""The quantized form of torch.nn.Conv2d."""

from __future__ import annotations

from torch import nn

from .convolution import QATConv


class Conv2dQAT(QATConv, nn.Conv2d):
    """`torch.nn.Conv2d` with quantized input and weight.

    Takes the arguments of `torch.nn.Conv2d`
    and `config`, whose keys are explained in docs/qat.md. The input has 4 dimensions.
    Raises ValueError for a padding_mode other than "zeros".

    >>> import torch
    >>> layer = Conv2dQAT(3, 8, 3, config={"retrain_data_config": {"batch_num": 2}})
    >>> layer(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 8, 14, 14])
    """

    FLOAT = nn.Conv2d
    RANKS = (4,)
