"""The batches of a calibration, kept to run a model on them again without asking the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class Replay:
    """Copies of what a model was called on, in its first calls that did not fail.

    Args:
        calls: how many calls are kept.
        largest: bytes that are kept; None for no limit.
    """

    def __init__(self, calls: int, largest: int | None = None) -> None:
        self._wanted = calls
        self._largest = largest
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._begun: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def complete(self) -> bool:
        """Whether all calls are here: not if parts of the model were called, nor for large data."""
        return len(self._calls) == self._wanted

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Keeps the calls of `model` inside the context."""
        # Before other hooks, which may change the arguments and will do so again.
        handles = [
            model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True),
            model.register_forward_hook(self.end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def run(self, model: nn.Module) -> None:
        """Calls `model` as the recorded one was called."""
        for args, kwargs in self:
            model(*args, **kwargs)

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of each call, copied again: a forward may change them in place."""
        return (tree_map(_copied, call) for call in self._calls)

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pre-hook."""
        if len(self._calls) >= self._wanted:
            return
        self._begun = None
        leaves = tree_leaves((args, kwargs))
        self._bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if self._largest is None or self._bytes <= self._largest:
            self._begun = tree_map(_copied, (args, kwargs))

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook."""
        if self._begun is not None:
            self._calls.append(self._begun)
            self._begun = None


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    with torch.inference_mode(False):  # what is made inside it can never need a gradient
        return leaf.detach().clone()
