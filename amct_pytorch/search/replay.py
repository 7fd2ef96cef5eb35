"""The batches of a calibration, kept to run another model on them without asking the user again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

LARGEST = 1 << 30  # bytes that are kept


class Replay:
    """Copies of what a model was called on, in its first calls."""

    def __init__(self, calls: int) -> None:
        self._wanted = calls
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._bytes = 0

    @property
    def complete(self) -> bool:
        """Whether all calls are here: not if parts of the model were called, nor for large data."""
        return len(self._calls) == self._wanted

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        handle = model.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def run(self, model: nn.Module) -> None:
        """Calls `model` as the recorded one was called."""
        for args, kwargs in self._calls:
            model(*args, **kwargs)

    def _record(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if len(self._calls) >= self._wanted:
            return
        leaves = tree_leaves((args, kwargs))
        self._bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if self._bytes <= LARGEST:
            self._calls.append(tree_map(_copied, (args, kwargs)))


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
