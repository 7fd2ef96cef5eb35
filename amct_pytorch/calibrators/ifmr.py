"""IFMR over batches: the factors of `ops.ifmr` for the concatenation of all batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..ops._checks import FLOATING, check_dtype
from ..ops.ifmr import ifmr
from ._sketch import Sketch

_ops = torch.ops.amct_pytorch

_MOST_VALUES = 2**16  # that are kept: they take as much memory as a sketch or less
_FINE_BITS = 8  # up to which a sketch mostly proves its choice
_MOST_VALUES_OF_MORE_BITS = 2**20
_MOST_VALUES_OF_CHANNELS = 2**22
_EXTREMES_FOR = 2**30  # values of which the sketch of a tensor has the ends exactly
_MOST_EXTREMES = 2**16  # of each sign
_HALF_VALUES = 2**16  # of a 16-bit type
_HALF_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Options:
    num_bits: int
    asymmetric: bool
    max_percentile: float
    min_percentile: float
    search_range: tuple[float, float]
    search_step: float

    @property
    def sketch_bits(self) -> int:
        """Fraction bits of the widest buckets: some for each step of the quantizer."""
        return min(max(self.num_bits + 6, 14), 17)

    @property
    def extremes(self) -> tuple[int, int]:
        """How many of the smallest and of the largest values a sketch keeps."""
        low, high = (
            min(math.ceil((1 - percentile) * _EXTREMES_FOR) + 1, _MOST_EXTREMES)
            for percentile in (self.min_percentile, self.max_percentile)
        )
        return low, high


class IFMR:
    """Streaming `ops.ifmr`: `update` with batches, `compute` their factors.

    Any split of the values into batches, any order, either device, any number of threads, or
    several calibrators joined by `merge` give the same bits. Options and errors are those of
    `ops.ifmr`; with `axis`, batches must agree in the size of that dimension. A batch that raises
    leaves the state as it was.

    The result is that of `ops.ifmr` on the concatenation whenever `certified` is True:
    - up to 65536 values, 2^20 with num_bits > 8, 2^22 with an `axis`: they are kept as they are;
    - any number of values of one 16-bit dtype without `axis`: they are counted, in 0.5 MB;
    - beyond, where the bounds of a sketch in host memory prove the choice: up to 8 bits without
      `axis` nearly always, the more rarely the more bits or channels there are.

    Otherwise `certified` is False, and the choice is the best estimate. Its loss then exceeded the
    least one by less than one part in 10^4 (8 bits, no `axis`), by up to 1 % for some of 1024
    channels and 4 % for some of 8192, on values of a heavy tail.

    The ends of the range that the search starts from are exact as long as no more values lie beyond
    a percentile than the sketch keeps: (1 - percentile) * 2^30, at most 65536, and with C channels
    at most 2^20 / C. Further in, an end is the mean of a bucket, less than 2^-14 of the largest
    magnitude away from it (8 bits, no `axis`), and `certified` is False.

    A sketch takes 1.1 MB for 8 bits without `axis`, and 9 MB for more; with an `axis` the buckets
    of all channels share 48 MB, which makes them wider the more channels there are, down to 4 KB a
    channel. So the state takes less than 64 MB up to 8192 channels, for any number of values.

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
        # One of these, unless all are empty.
        self._batches: list[Tensor] = []  # [channels, values], one row without an axis
        self._counts: dict[torch.dtype, Tensor] = {}  # of the values of one 16-bit type
        self._sketch: Sketch | None = None
        self._device = torch.device("cpu")
        self.certified = None

    @property
    def empty(self) -> bool:
        """Whether no value has been seen."""
        return self._sketch is None and not self._batches and not self._counts

    def update(self, x: Tensor) -> None:
        """Adds the values of x: float32, float16 or bfloat16, of any shape and strides."""
        check_dtype("x", x)
        if x.numel() == 0:
            raise ValueError(f"x: expected at least one element, got shape {tuple(x.shape)}")
        x = x.detach()
        channels = 1 if self._axis is None else x.size(self._axis)
        self._check_channels(channels)
        if self._keeps(x.numel()):
            rows = _rows(x, self._axis)
            if not _all_finite(rows):
                raise RuntimeError("x must be finite, got NaN or infinity")
            self._batches.append(rows.clone())
        elif self._counts_alone({x.dtype}):
            counts = _zero_counts()
            _ops.ifmr_count(x, counts)
            self._add_counts(counts, x.dtype)
        else:
            sketch = self._as_sketch(channels)
            sketch.update(x, self._axis)
            self._take(sketch)
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
        if other.empty:
            return
        channels = other._channels or 1
        self._check_channels(channels)
        if other._batches and self._keeps(_numel(other._batches)):
            self._batches.extend(other._batches)
        elif other._sketch is None and self._counts_alone(other._dtypes):
            for dtype, counts in other._counted().items():
                self._add_counts(counts, dtype)
        else:
            theirs = other._as_sketch(channels)
            sketch = self._as_sketch(channels)
            sketch.merge(theirs)
            self._take(sketch)
        self._device = other._device

    def compute(self) -> tuple[Tensor, Tensor]:
        """(scale, offset) of all values so far, on the device of the last batch."""
        if self.empty:
            raise RuntimeError("IFMR has no values to compute factors of: call update first")
        options, axis = asdict(self._options), None if self._axis is None else 0
        if self._batches:
            self._batches, self.certified = [self._values()], True
            return ifmr(self._batches[0].to(self._device), **options, axis=axis)
        if self._sketch is not None:
            scale, offset, self.certified = self._sketch.search(options)
        else:
            ((dtype, counts),) = self._counts.items()
            is_bfloat16 = dtype == torch.bfloat16
            scale, offset = _ops.ifmr_search_counts(counts, is_bfloat16, *options.values())
            self.certified = True
        size = () if self._axis is None else scale.shape
        return scale.view(size).to(self._device), offset.view(size).to(self._device)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors, which may change with `update`; the options are not part of it."""
        if self._sketch is not None:
            return self._sketch.copy().state()
        if self._batches:
            return {"values": self._values()}
        return {f"{_name(dtype)}_counts": counts.clone() for dtype, counts in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state from `state_dict` of a calibrator with the same options.

        Raises ValueError for one that such a calibrator cannot have; the state then stays.
        """
        if not self._can_have(state):
            raise ValueError(
                f"state: expected that of an IFMR with the options {self._options} and axis "
                f"{self._axis}, undamaged, got {_described(state)}"
            )
        self.reset()
        if "values" in state:
            self._batches = [state["values"].clone()]
            self._device = state["values"].device
        elif "counts" in state:
            self._sketch = Sketch(
                **{name: tensor.cpu().contiguous() for name, tensor in state.items()}
            ).copy()
        else:
            for dtype in _HALF_TYPES:
                if (key := f"{_name(dtype)}_counts") in state:
                    self._counts = {dtype: state[key].cpu().clone()}

    def _can_have(self, state: Mapping[str, Tensor]) -> bool:
        if not isinstance(state, Mapping):
            return False
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            return False
        if not state:
            return True
        if set(state) == {"values"}:
            values = state["values"]
            return (
                values.dtype in FLOATING
                and values.dim() == 2
                and 0 < values.numel() <= self._most_values
                and (self._axis is not None or values.shape[0] == 1)
                and _all_finite(values)
            )
        if set(state) in ({f"{_name(dtype)}_counts"} for dtype in _HALF_TYPES):
            ((name, counts),) = state.items()
            shaped = (counts.shape, counts.dtype) == ((_HALF_VALUES,), torch.int64)
            if self._axis is not None or not shaped:
                return False
            exponents = 0x7C00 if name == "float16_counts" else 0x7F80
            codes = torch.arange(_HALF_VALUES, device=counts.device)
            infinite = counts[(codes & exponents) == exponents]
            return bool((counts >= 0).all() and counts.any() and not infinite.any())
        if "tops" not in state or (self._axis is None and state["tops"].shape != (1,)):
            return False
        own = self._new_sketch(max(1, state["tops"].numel())).state()
        return (
            set(state) == set(own)
            and all(
                (state[name].shape, state[name].dtype) == (own[name].shape, own[name].dtype)
                for name in own
            )
            and Sketch(**state).is_valid
        )

    # ---- which of the three forms the state has depends on its values alone ----

    def _keeps(self, more: int) -> bool:
        """Whether the values are still few with `more`."""
        if self._sketch is not None or self._counts:
            return False
        return _numel(self._batches) + more <= self._most_values

    @property
    def _most_values(self) -> int:
        if self._axis is not None:
            return _MOST_VALUES_OF_CHANNELS
        fine = self._options.num_bits <= _FINE_BITS
        return _MOST_VALUES if fine else _MOST_VALUES_OF_MORE_BITS

    def _counts_alone(self, more: set[torch.dtype]) -> bool:
        """Whether all values are of one 16-bit dtype with some of the dtypes `more`."""
        dtypes = self._dtypes | more
        alone = self._sketch is None and self._axis is None
        return alone and len(dtypes) == 1 and dtypes <= set(_HALF_TYPES)

    @property
    def _dtypes(self) -> set[torch.dtype]:
        return {rows.dtype for rows in self._batches} | set(self._counts)

    def _counted(self) -> dict[torch.dtype, Tensor]:
        """The counts, of kept values also."""
        found = dict(self._counts)
        for rows in self._batches:
            found.setdefault(rows.dtype, _zero_counts())
            _ops.ifmr_count(rows, found[rows.dtype])
        return found

    def _add_counts(self, more: Tensor, dtype: torch.dtype) -> None:
        self._counts = self._counted()
        self._counts[dtype] = self._counts.get(dtype, 0) + more
        self._batches = []

    def _new_sketch(self, channels: int) -> Sketch:
        return Sketch.empty(channels, self._options.sketch_bits, *self._options.extremes)

    def _as_sketch(self, channels: int) -> Sketch:
        """The sketch of the state: its own, or a new one with the values so far."""
        if self._sketch is not None:
            return self._sketch
        sketch = self._new_sketch(channels)
        for rows in self._batches:
            sketch.update(rows, None if self._axis is None else 0)
        for dtype, counts in self._counts.items():
            sketch.add_counts(counts, dtype)
        return sketch

    def _take(self, sketch: Sketch) -> None:
        self._sketch, self._batches, self._counts = sketch, [], {}

    def _values(self) -> Tensor:
        return torch.cat([rows.to(self._batches[-1].device) for rows in self._batches], dim=1)

    @property
    def _channels(self) -> int | None:
        if self._sketch is not None:
            return len(self._sketch.tops)
        return self._batches[0].shape[0] if self._batches else None

    def _check_channels(self, channels: int) -> None:
        if self._channels not in (None, channels):
            raise RuntimeError(
                f"x: expected {self._channels} channels in dimension {self._axis} as in the "
                f"batches before, got {channels}"
            )


def _described(state: object) -> str:
    if not isinstance(state, Mapping):
        return type(state).__name__
    parts = (
        f"{name} {_name(value.dtype)} {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"{name} {type(value).__name__}"
        for name, value in state.items()
    )
    return ", ".join(parts) or "nothing"


def _all_finite(x: Tensor) -> bool:
    return all(torch.isfinite(end) for end in x.aminmax())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _zero_counts() -> Tensor:
    return torch.zeros(_HALF_VALUES, dtype=torch.int64, device="cpu")


def _numel(batches: list[Tensor]) -> int:
    return sum(rows.numel() for rows in batches)


def _rows(x: Tensor, axis: int | None) -> Tensor:
    """One row for each index of the dimension `axis`, one row in all without it."""
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.size(axis), -1)
