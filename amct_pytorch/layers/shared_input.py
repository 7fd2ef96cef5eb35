"""One quantization for an input that several layers read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SharedInput:
    """Keeps the quantized form of the newest input until every reader has had it.

    Nothing is kept where a kept tensor would be wrong or useless: in a compiled graph, whose
    compiler joins equal calls itself, in a forward that a backward pass repeats, and while what
    autograd saves is packed away to be recomputed.
    """

    def __init__(self) -> None:
        self.readers = 1
        self._had: set[int] = set()  # readers that have had it
        self._key: tuple[Any, ...] | None = None
        self._value: Tensor | None = None

    def get(
        self, x: Tensor, clip: Tensor, reader: object, quantize: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """quantize(x), computed once for all readers of the same tensor.

        `clip` is written when the range changes. A reader that asks again is in another forward,
        which the others may not have got to.
        """
        if self.readers == 1 or torch.compiler.is_compiling() or _recomputes():
            return quantize(x)
        known = self._key is not None and self._key[0] is x and self._key[1:] == _state(x, clip)
        if not known or id(reader) in self._had:
            self._value = quantize(x)
            self._key, self._had = (x, *_state(x, clip)), set()
        value = self._value
        assert value is not None
        self._had.add(id(reader))
        if len(self._had) == self.readers:
            self._key = self._value = None
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"readers": self.readers, "_had": set(), "_key": None, "_value": None}


def _state(x: Tensor, clip: Tensor) -> tuple[Any, ...]:
    """What changes with the values that a kept tensor came from."""
    versions = (None if t.is_inference() else t._version for t in (x, clip))
    return (*versions, torch.is_grad_enabled())


def _recomputes() -> bool:
    in_backward = torch._C._current_graph_task_id() != -1
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return in_backward or hooks is not None
