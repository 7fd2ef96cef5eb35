"""A matrix product of two quantized inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import QuantizedInputs
from .config import ModuleConfig, read_config

INPUTS = ("x1", "x2")
LEAST_RANK, MOST_RANK = 2, 6


class MatMulQAT(QuantizedInputs):
    """`torch.matmul` of two inputs, both quantized symmetrically to 8 bits.

    `config` has the keys of the other modules; of its weight part nothing is used. Inputs are
    float32 and have 2 to 6 dimensions, else RuntimeError or TypeError.

    >>> layer = MatMulQAT()
    >>> layer(torch.eye(2), torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, device: Any = None, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config: ModuleConfig = read_config("MatMulQAT", config)
        data = self.config.retrain_data_config
        if data.dst_type != "INT8":
            raise ValueError(f'MatMulQAT: dst_type: expected "INT8", got "{data.dst_type}"')
        for prefix in INPUTS if self.config.retrain_enable else ():
            self.add_input(data.model_copy(update={"asymmetric": False}), prefix)
        self.to(device)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The product of the quantized inputs."""
        for name, x in zip(INPUTS, (x1, x2), strict=True):
            if not LEAST_RANK <= x.dim() <= MOST_RANK:
                raise RuntimeError(
                    f"MatMulQAT: {name}: expected {LEAST_RANK} to {MOST_RANK} dimensions, got "
                    f"{list(x.shape)}"
                )
            if x.dtype != torch.float32:
                dtype = str(x.dtype).removeprefix("torch.")
                raise TypeError(f"MatMulQAT: {name}: expected dtype float32, got {dtype}")
        if not self.config.retrain_enable:
            return torch.matmul(x1, x2)
        return torch.matmul(self.quantized(x1, "x1"), self.quantized(x2, "x2"))

    @torch.no_grad()
    def settle(self) -> None:
        if self.config.retrain_enable:
            super().settle()
