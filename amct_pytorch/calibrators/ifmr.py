"""IFMR over batches: the factors of `ops.ifmr` for the concatenation of all batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..ops._checks import check_dtype
from ..ops.ifmr import ifmr


@dataclass(frozen=True)
class _Options:
    num_bits: int
    asymmetric: bool
    max_percentile: float
    min_percentile: float
    search_range: tuple[float, float]
    search_step: float


class IFMR:
    """Streaming `ops.ifmr`: `update` with batches, `compute` their factors.

    Any split of the values into batches, any order, either device, or several calibrators joined
    by `merge` give bit for bit the result of `ops.ifmr` on the concatenation. Options and errors
    are those of `ops.ifmr`; with `axis`, batches must agree in the size of that dimension. A batch
    that raises leaves the state as it was.

    The state holds every value in the dtype of its batch.

    >>> import torch
    >>> calibrator = IFMR()
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
        max_percentile: float = 0.999999,
        min_percentile: float = 0.999999,
        search_range: tuple[float, float] = (0.7, 1.3),
        search_step: float = 0.01,
        axis: int | None = None,
    ) -> None:
        start, end = search_range
        self._options = _Options(
            num_bits, asymmetric, max_percentile, min_percentile, (start, end), search_step
        )
        self._axis = axis
        self._batches: list[Tensor] = []
        ifmr(torch.zeros(1), **asdict(self._options))  # refuses what the op refuses

    def update(self, x: Tensor) -> None:
        """Adds the values of x: float32, float16 or bfloat16, of any shape and strides."""
        check_dtype("x", x)
        if x.numel() == 0:
            raise ValueError(f"x: expected at least one element, got shape {tuple(x.shape)}")
        rows = x.detach() if self._axis is None else x.detach().movedim(self._axis, 0)
        rows = rows.reshape(1 if self._axis is None else rows.shape[0], -1)
        if not all(torch.isfinite(end) for end in rows.aminmax()):
            raise RuntimeError("x: expected finite values, got NaN or infinity")
        self._check_channels(rows)
        self._batches.append(rows.clone())

    def merge(self, other: IFMR) -> None:
        """Adds what `other`, a calibrator with the same options, has seen."""
        if (other._options, other._axis) != (self._options, self._axis):
            raise ValueError(
                f"other: expected the options {self._options} and axis {self._axis}, "
                f"got {other._options} and axis {other._axis}"
            )
        for rows in other._batches:
            self._check_channels(rows)
        self._batches.extend(other._batches)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(scale, offset) of all values so far, on the device of the last batch."""
        if not self._batches:
            raise RuntimeError("IFMR has no values to compute factors of: call update first")
        device = self._batches[-1].device
        values = torch.cat([rows.to(device) for rows in self._batches], dim=1)
        self._batches = [values]
        axis = None if self._axis is None else 0
        return ifmr(values, **asdict(self._options), axis=axis)

    def reset(self) -> None:
        """Forgets all values."""
        self._batches = []

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors; the options are not part of it."""
        return {f"batch{i}": rows for i, rows in enumerate(self._batches)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state from `state_dict` of a calibrator with the same options."""
        self._batches = list(state.values())

    def _check_channels(self, rows: Tensor) -> None:
        if self._batches and rows.shape[0] != self._batches[0].shape[0]:
            raise RuntimeError(
                f"x: expected {self._batches[0].shape[0]} channels in dimension {self._axis} as "
                f"in the batches before, got {rows.shape[0]}"
            )
