"""The quantized form of torch.nn.LSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .recurrent import RecurrentQAT


class LSTMQAT(RecurrentQAT, nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` of one layer in one direction with quantized input, hidden state and weights.

    Takes the arguments of `torch.nn.LSTM` and `config`, whose keys are explained in docs/qat.md;
    without channel_wise each gate has one scale. RuntimeError for more than one layer, both
    directions, dropout or a projection.

    >>> import torch
    >>> layer = LSTMQAT(3, 4, batch_first=True)
    >>> output, _ = layer(torch.randn(2, 5, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)))
    >>> output.shape
    torch.Size([2, 5, 4])
    """

    FLOAT = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        self.add_quantizers(config)
