"""HFMG over batches: one histogram whose range grows with the batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..ops._checks import check_dtype
from ..ops.hfmg import hfmg

_ops = torch.ops.amct_pytorch


class HFMG:
    """Streaming `ops.hfmg`: `update` with batches, `compute` their factors.

    A batch beyond the range so far widens it, and the counts move to the new bins: the sequence
    of batches is part of the definition. The same sequence gives the same bits on CPU and CUDA and
    for any number of threads; one batch gives those of `ops.hfmg`. Options and errors are those of
    `ops.hfmg`; with `axis`, batches must agree in the size of that dimension. A batch that
    raises leaves the state as it was.

    The state is host memory: range and counts, 8 num_of_bins bytes a channel.

    >>> import torch
    >>> calibrator = HFMG()
    >>> calibrator.update(torch.tensor([0.0, 1.0]))
    >>> calibrator.update(torch.tensor([5.0]))
    >>> scale, offset = calibrator.compute()
    >>> offset.item()
    -128
    """

    def __init__(
        self,
        num_bits: int = 8,
        asymmetric: bool = True,
        num_of_bins: int = 4096,
        axis: int | None = None,
    ) -> None:
        one = torch.zeros(1, dtype=torch.float32, device="cpu")  # validates the options
        hfmg(one, num_bits, asymmetric=asymmetric, num_of_bins=num_of_bins)
        self._num_bits, self._asymmetric = num_bits, asymmetric
        self._num_of_bins, self._axis = num_of_bins, axis
        self.reset()

    def reset(self) -> None:
        """Forgets all values."""
        self._ranges, self._counts = self._empty(0)
        self._device = torch.device("cpu")

    def update(self, x: Tensor) -> None:
        """Adds the values of x: float32, float16 or bfloat16, of any shape and strides."""
        check_dtype("x", x)
        channels = 1 if self._axis is None else x.size(self._axis)
        self._check_channels(channels)
        state = (self._ranges, self._counts) if len(self._ranges) else self._empty(channels)
        self._ranges, self._counts = _ops.hfmg_update(x.detach(), *state, self._axis)
        self._device = x.device

    def merge(self, other: HFMG) -> None:
        """Adds what `other`, a calibrator with the same options, has seen, as one batch."""
        if not isinstance(other, HFMG):
            raise TypeError(f"other: expected an HFMG, got {type(other).__name__}")
        if other._options != self._options:
            raise ValueError(f"other: expected the options {self._options}, got {other._options}")
        if not len(other._ranges):
            return
        self._check_channels(len(other._ranges))
        state = (
            (self._ranges, self._counts) if len(self._ranges) else self._empty(len(other._ranges))
        )
        self._ranges, self._counts = _ops.hfmg_merge(*state, other._ranges, other._counts)
        self._device = other._device

    def compute(self) -> tuple[Tensor, Tensor]:
        """(scale, offset) of all values so far, on the device of the last batch."""
        if not len(self._ranges):
            raise RuntimeError("HFMG has no values to compute factors of: call update first")
        factors = _ops.hfmg_search(self._ranges, self._counts, self._num_bits, self._asymmetric)
        scale, offset = (factor.to(self._device) for factor in factors)
        return (scale[0], offset[0]) if self._axis is None else (scale, offset)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors; the options are not part of it."""
        return {"ranges": self._ranges, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state from `state_dict` of a calibrator with the same options.

        Raises KeyError, RuntimeError or ValueError if it is no such state; then nothing changes.
        """
        ranges, counts = state["ranges"].cpu(), state["counts"].cpu()
        if len(ranges):
            empty = self._empty(1 if self._axis is None else len(ranges))
            self._ranges, self._counts = _ops.hfmg_merge(*empty, ranges, counts)  # checks them
        else:
            self.reset()

    @property
    def _options(self) -> dict[str, object]:
        return {
            "num_bits": self._num_bits,
            "asymmetric": self._asymmetric,
            "num_of_bins": self._num_of_bins,
            "axis": self._axis,
        }

    def _empty(self, channels: int) -> tuple[Tensor, Tensor]:
        # Said in full, for torch.set_default_dtype and set_default_device are the user's.
        none = torch.tensor([torch.inf, -torch.inf], dtype=torch.float32, device="cpu")
        counts = torch.zeros(channels, self._num_of_bins, dtype=torch.int64, device="cpu")
        return none.repeat(channels, 1), counts

    def _check_channels(self, channels: int) -> None:
        if len(self._ranges) not in (0, channels):
            raise RuntimeError(
                f"x: expected {len(self._ranges)} channels in dimension {self._axis} as in the "
                f"batches before, got {channels}"
            )
