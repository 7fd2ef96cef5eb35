"""The shift factor N of a layer, chosen over evaluation batches after training.

Older hardware keeps the int32 sums of a layer as int16 after a right shift by N bits. Each N from 1
to 16 is judged by the squared error that it leaves in the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.shift import shift_errors, shift_of_errors

CANDIDATES = 16


class ShiftSearch(nn.Module):
    """Sums up the errors over the first `batch_num` evaluation batches behind the last training.

    Its state is in buffers, and no value is read on the host but by `progress`.
    """

    errors: Tensor
    batches_seen: Tensor

    def __init__(self, channels: int, batch_num: int) -> None:
        super().__init__()
        self.batch_num = batch_num
        self.register_buffer("errors", torch.zeros(channels, CANDIDATES, dtype=torch.float64))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    @property
    def progress(self) -> tuple[int, int]:
        """Batches seen and needed."""
        return int(self.batches_seen), self.batch_num

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets all: the weights are about to change."""
        self.errors.zero_()
        self.batches_seen.zero_()

    @torch.no_grad()
    def observe(self, sums: Tensor, axis: int) -> None:
        """Adds the errors of one batch of integer sums, whose channels are in `axis`."""
        channels = len(self.errors)
        one = torch.ones(channels, dtype=torch.float32, device=sums.device)
        errors = shift_errors(sums, one, axis if channels > 1 else None)
        counts = self.batches_seen < self.batch_num
        self.errors.add_(torch.where(counts, errors, 0.0))
        self.batches_seen.add_(counts)

    def shift(self) -> Tensor:
        """N as int32 [1] or [Cout]; 0, which is none, before enough has been seen."""
        known = self.batches_seen >= self.batch_num
        return torch.where(known, shift_of_errors(self.errors), 0)
