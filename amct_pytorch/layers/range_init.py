"""The first clip range of a learned quantizer: IFMR over the first batches it sees.

Seen from autograd and from torch.compile this is one op that writes the clips in place, so that a
model can be compiled whole before it has seen a batch; the calibrator behind it lives on the host.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..calibrators import IFMR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RangeOptions:
    """How one input is quantized during training."""

    num_bits: int = 8
    batch_num: int = 1  # batches that the first range is found from
    fixed_min: bool = False  # clip_min stays 0
    asymmetric: bool = True
    clips: tuple[float, float] | None = None  # (clip_max, clip_min) to start from instead


class RangeInit(nn.Module):
    """Sets a pair of clips from the first `batch_num` inputs; afterwards it does nothing.

    Until enough has been seen the clips are the extremes of the newest input. Inputs count in
    training and in evaluation mode, but for evaluation when several processes train together:
    there all processes must count alike. With the last input the processes merge what they have
    seen, once, so that all get the clips of one process on all the data.

    `batches_seen` and, while the search is on, the calibrator's state are part of the state dict.
    """

    batches_seen: Tensor

    def __init__(self, name: str, options: RangeOptions) -> None:
        super().__init__()
        self.name = name
        self.options = options
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.calibrator = _new_calibrator(options)
        self.done = options.clips is not None
        self.provisional = False  # clips of an input that did not count
        self.readers = 1  # layers that share the input: each shows it once
        self._newest: Tensor | None = None
        self._reads = 0
        self._largest = 0.0  # magnitude seen
        # A tensor: a number would be a constant of compiled code, one for each model. No buffer:
        # averaging of models and DistributedDataParallel copy those.
        self.handle = _register(self)

    @property
    def progress(self) -> tuple[int, int]:
        """Batches seen and needed."""
        return int(self.batches_seen), self.options.batch_num

    def observe(self, x: Tensor, clip_max: Tensor, clip_min: Tensor) -> None:
        """Shows one input; writes the clips. No value is read on the host once `done` is true."""
        if self.done or x.numel() == 0:
            return
        with torch.no_grad():
            torch.ops.amct_pytorch.observe_range(
                x.detach(), clip_max, clip_min, self.batches_seen, self.handle
            )

    def check_done(self, clip_max: Tensor, clip_min: Tensor) -> bool:
        """Whether clips are there: from the configuration, from batches or from outside.

        Outside: an average of the parameters (one of the buffers too has a number of batches
        without having seen any), or a checkpoint that knows no `batches_seen`.
        """
        if not self.done:
            seen, needed = self.progress
            written = bool(clip_max > clip_min) and not self.provisional
            self.done = seen >= needed or (self.calibrator.empty and written)
        return self.done

    def count(self, x: Tensor, clip_max: Tensor, clip_min: Tensor, batches_seen: Tensor) -> None:
        """The body of the op, which writes its arguments: a compiled graph puts in copies."""
        if self.done or _recomputing() or self._shown_before(x):
            return
        if self.check_done(clip_max, clip_min):
            self._newest = None
            return
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if together and not self.training:
            _set_extremes(x, clip_max, clip_min)
            self.provisional = True
            return
        seen = int(batches_seen) + 1
        try:
            self.calibrator.update(x)
            self._largest = max(self._largest, float(x.abs().amax()))
            batches_seen.fill_(seen)
            if seen < self.options.batch_num:
                _set_extremes(x, clip_max, clip_min)
                return
            if together:
                self.calibrator, self._largest = _merged(
                    self.calibrator, self._largest, self.options
                )
            scale, _ = self.calibrator.compute()
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.name}: no range can be found for its input: {error} (batch {seen} of "
                f"{self.options.batch_num})"
            ) from error
        half = 2 ** (self.options.num_bits - 1)
        if float(scale) == 1.0 and self._largest < 0.5:  # which stands for an empty range
            self._warn_of_nothing_seen()
            scale = scale / (half - 1)
        clip_max.copy_(scale * (half - 1))
        clip_min.copy_(scale * -half)
        self.calibrator.reset()
        self._newest = None
        self.done = True

    def _warn_of_nothing_seen(self) -> None:
        what = (
            "zero" if self._largest == 0 else f"{self._largest:.3g} at most, too small for a scale"
        )
        logger.warning(
            "%s: its input was %s in the first %d batches, so its range starts at [-1, 1]; give "
            "clip_max and clip_min in the configuration if that is far from what will come",
            self.name,
            what,
            self.options.batch_num,
        )

    def _shown_before(self, x: Tensor) -> bool:
        """Whether another reader of this input has shown it in the same forward."""
        if self.readers == 1:
            return False
        newest, self._newest = self._newest, x
        if newest is not None and self._reads < self.readers and _same(newest, x):
            self._reads += 1
            return True
        self._reads = 1
        return False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, tensor in self.calibrator.state_dict().items():
            destination[prefix + key] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        seen = own.pop("batches_seen", 0)  # checkpoints of the Ascend toolkit know none
        try:
            self.calibrator.load_state_dict(own)
        except ValueError as error:
            error_msgs.append(f"{prefix}*: {error}")
            return
        self.batches_seen.copy_(torch.as_tensor(seen))
        self.done, self.provisional = self.options.clips is not None, False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_newest": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = _register(self)


# An op takes tensors and numbers only: it finds its module by a number.
_MODULES: weakref.WeakValueDictionary[int, RangeInit] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def _register(module: RangeInit) -> Tensor:
    number = next(_NUMBERS)
    _MODULES[number] = module
    return torch.tensor(number, device="cpu")


@torch.library.custom_op(
    "amct_pytorch::observe_range", mutates_args=("clip_max", "clip_min", "batches_seen")
)
def _observe_range(
    x: Tensor, clip_max: Tensor, clip_min: Tensor, batches_seen: Tensor, handle: Tensor
) -> None:
    _MODULES[int(handle)].count(x, clip_max, clip_min, batches_seen)


@_observe_range.register_fake
def _(x: Tensor, clip_max: Tensor, clip_min: Tensor, batches_seen: Tensor, handle: Tensor) -> None:
    return None


def _new_calibrator(options: RangeOptions) -> IFMR:
    return IFMR(options.num_bits, asymmetric=False)


def _merged(calibrator: IFMR, largest: float, options: RangeOptions) -> tuple[IFMR, float]:
    """What the calibrators of all processes have seen, joined in the order of their ranks.

    With it, the largest magnitude that any has seen.
    """
    shares: list[Any] = [None] * dist.get_world_size()
    own = {key: tensor.cpu() for key, tensor in calibrator.state_dict().items()}
    dist.all_gather_object(shares, (own, largest))
    merged = _new_calibrator(options)
    for state, _ in shares:
        other = _new_calibrator(options)
        other.load_state_dict(state)
        merged.merge(other)
    return merged, max(share[1] for share in shares)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)  # a compiled graph hands out copies


def _set_extremes(x: Tensor, clip_max: Tensor, clip_min: Tensor) -> None:
    least, greatest = x.aminmax()
    clip_max.copy_(greatest)
    clip_min.copy_(least)


def _recomputing() -> bool:
    """Whether a backward pass repeats a forward that it did not keep: the input came before."""
    return bool(torch._C._current_graph_task_id() != -1)
