"""IFMR over batches: the factors of `ops.ifmr` for the concatenation of all batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from ..ops._checks import check_dtype
from ..ops.ifmr import ifmr
from ._sketch import Sketch

# When a sketch replaces the values: the same rule as in csrc/ops/ifmr.inl, so as to choose alike.
_MOST_VALUES = 65536
_MOST_BITS = 8
_MOST_BEYOND = 2**-16  # fraction of the values beyond a percentile
_MOST_SKETCHED = 2**32  # values for which a sketch keeps enough extreme ones


@dataclass(frozen=True)
class _Options:
    num_bits: int
    asymmetric: bool
    max_percentile: float
    min_percentile: float
    search_range: tuple[float, float]
    search_step: float

    @property
    def can_sketch(self) -> bool:
        beyond = 1 - min(self.max_percentile, self.min_percentile)
        return self.num_bits <= _MOST_BITS and beyond <= _MOST_BEYOND

    @property
    def kept(self) -> tuple[int, int]:
        """How many of the smallest and of the largest values a sketch keeps."""
        low, high = (
            math.ceil((1 - percentile) * _MOST_SKETCHED) + 1
            for percentile in (self.min_percentile, self.max_percentile)
        )
        return low, high


class IFMR:
    """Streaming `ops.ifmr`: `update` with batches, `compute` their factors.

    Any split of the values into batches, any order, either device, or several calibrators joined
    by `merge` give bit for bit the result of `ops.ifmr` on the concatenation. Options and errors
    are those of `ops.ifmr`; with `axis`, batches must agree in the size of that dimension. A batch
    that raises leaves the state as it was.

    The state holds every value in the dtype of its batch, and the choice is exact. Beyond 65536
    values, without `axis`, with num_bits <= 8 and both percentiles >= 1 - 2^-16, it is a sketch of
    a few megabytes in host memory instead, which is good for at least 2^32 values. `certified`
    then says whether its bounds prove the choice exact; if not, another candidate's loss may be
    lower by about one part in 10^5.

    >>> import torch
    >>> calibrator = IFMR()
    >>> calibrator.update(torch.tensor([0.0, 1.0]))
    >>> calibrator.update(torch.tensor([5.0]))
    >>> scale, offset = calibrator.compute()
    >>> offset.item(), calibrator.certified
    (-128, True)
    """

    certified: bool | None
    """Whether the last result of `compute` is proven to be the least loss; None before it."""

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
        one = torch.zeros(1, dtype=torch.float32, device="cpu")  # refuses what the op refuses
        ifmr(one, **asdict(self._options))
        self.reset()

    def reset(self) -> None:
        """Forgets all values."""
        self._batches: list[Tensor] = []  # [channels, values], one row without an axis
        self._sketch: Sketch | None = None
        self._device = torch.device("cpu")
        self.certified = None

    @property
    def empty(self) -> bool:
        """Whether no value has been seen."""
        return self._sketch is None and not self._batches

    def update(self, x: Tensor) -> None:
        """Adds the values of x: float32, float16 or bfloat16, of any shape and strides."""
        check_dtype("x", x)
        if x.numel() == 0:
            raise ValueError(f"x: expected at least one element, got shape {tuple(x.shape)}")
        x = x.detach()
        if self._sketch is not None or self._outgrows(x.numel()):
            self._add_sketch(Sketch.of(x, *self._options.kept))
        else:
            rows = x.reshape(1, -1) if self._axis is None else _rows(x, self._axis)
            self._check_channels(rows)
            if not all(torch.isfinite(end) for end in rows.aminmax()):
                raise RuntimeError("x must be finite, got NaN or infinity")
            self._batches.append(rows.clone())
        self._device = x.device

    def merge(self, other: IFMR) -> None:
        """Adds what `other`, a calibrator with the same options, has seen."""
        if not isinstance(other, IFMR):
            raise TypeError(f"other: expected an IFMR, got {type(other).__name__}")
        if (other._options, other._axis) != (self._options, self._axis):
            raise ValueError(
                f"other: expected the options {self._options} and axis {self._axis}, "
                f"got {other._options} and axis {other._axis}"
            )
        if other._sketch is not None:
            self._add_sketch(other._sketch)
        elif other._batches:
            self._check_channels(other._batches[0])
            if self._sketch is not None or self._outgrows(_numel(other._batches)):
                self._add_sketch(self._sketch_of(other._batches))
            else:
                self._batches.extend(other._batches)
        else:
            return
        self._device = other._device

    def compute(self) -> tuple[Tensor, Tensor]:
        """(scale, offset) of all values so far, on the device of the last batch."""
        if self._sketch is not None:
            scale, offset, self.certified = self._sketch.search(asdict(self._options))
            return scale.to(self._device), offset.to(self._device)
        if not self._batches:
            raise RuntimeError("IFMR has no values to compute factors of: call update first")
        self._batches = [self._values(self._batches)]
        self.certified = True
        axis = None if self._axis is None else 0
        return ifmr(self._batches[0].to(self._device), **asdict(self._options), axis=axis)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors; the options are not part of it."""
        if self._sketch is not None:
            return self._sketch.state()
        return {"values": self._values(self._batches)} if self._batches else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state from `state_dict` of a calibrator with the same options.

        Raises ValueError for one that such a calibrator cannot have; the state then stays.
        """
        if not self._can_have(state):
            raise ValueError(
                f"state: expected that of an IFMR with the options {self._options} and axis "
                f"{self._axis}, got {_described(state)}"
            )
        self.reset()
        if "values" in state:
            self._batches = [state["values"].clone()]
            self._device = state["values"].device
        elif state:
            self._sketch = Sketch(**{name: tensor.clone() for name, tensor in state.items()})

    def _can_have(self, state: Mapping[str, Tensor]) -> bool:
        if "values" in state:
            values = state["values"]
            filled = len(state) == 1 and values.dim() == 2 and values.numel() > 0
            return filled and (self._axis is not None or values.shape[0] == 1)
        sketched = set(state) == {field.name for field in fields(Sketch)}
        return not state or (sketched and self._axis is None and self._options.can_sketch)

    def _outgrows(self, more: int) -> bool:
        """Whether a sketch replaces the values when `more` join those of the batches."""
        can_sketch = self._axis is None and self._options.can_sketch
        return can_sketch and _numel(self._batches) + more > _MOST_VALUES

    def _add_sketch(self, sketch: Sketch) -> None:
        own = self._sketch_of(self._batches) if self._batches else self._sketch
        self._sketch = sketch if own is None else own.merged(sketch, *self._options.kept)
        self._batches = []

    def _sketch_of(self, batches: list[Tensor]) -> Sketch:
        return Sketch.of(self._values(batches), *self._options.kept)

    def _values(self, batches: list[Tensor]) -> Tensor:
        return torch.cat([rows.to(batches[-1].device) for rows in batches], dim=1)

    def _check_channels(self, rows: Tensor) -> None:
        if self._batches and rows.shape[0] != self._batches[0].shape[0]:
            raise RuntimeError(
                f"x: expected {self._batches[0].shape[0]} channels in dimension {self._axis} as "
                f"in the batches before, got {rows.shape[0]}"
            )


def _described(state: Mapping[str, Tensor]) -> str:
    parts = (f"{name} {list(tensor.shape)}" for name, tensor in state.items())
    return ", ".join(parts) or "nothing"


def _numel(batches: list[Tensor]) -> int:
    return sum(rows.numel() for rows in batches)


def _rows(x: Tensor, axis: int) -> Tensor:
    """One row for each index of the dimension `axis`."""
    return x.movedim(axis, 0).reshape(x.size(axis), -1)
