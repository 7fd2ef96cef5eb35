"""Arrays that are made when they are asked for: a graph of them holds no copy of a model's weights.

Weights are read where they are, in the model or in a file, at the moment they are needed, and let
go behind that; so a graph is rewritten and written to disk one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class LazyArray:
    """An array of a known shape and type; `read` makes it, anew at each call.

    >>> ones = LazyArray((2, 3), np.dtype(np.float32), lambda: np.ones((2, 3), np.float32))
    >>> ones.transposed().read().shape
    (3, 2)
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    read: Callable[[], Array]

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor) -> LazyArray:
        """The values that `tensor` has when they are read; bfloat16 as float32, which holds it.

        `tensor` may be a parameter: `model.half()` and its like give that another memory.
        """
        tensor = tensor.detach()
        plain = _plain(tensor[:0] if tensor.dim() else tensor)
        return cls(tuple(tensor.shape), plain.numpy().dtype, lambda: _plain(tensor).numpy())

    @classmethod
    def of_constant(cls, tensor: ir.TensorProtocol) -> LazyArray:
        """The values of a tensor of a graph."""
        shape = tuple(map(int, tensor.shape.numpy()))
        return cls(shape, tensor.dtype.numpy(), tensor.numpy)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def transposed(self, axes: tuple[int, ...] | None = None) -> LazyArray:
        """With dimensions in another order, reversed by default."""
        order = tuple(reversed(range(self.ndim))) if axes is None else axes
        shape = tuple(self.shape[axis] for axis in order)
        return LazyArray(shape, self.dtype, lambda: self.read().transpose(order))

    def times(self, factor: float) -> LazyArray:
        """Multiplied by a float32, in the type that it has."""
        if factor == 1.0:
            return self
        by, dtype = np.float32(factor), self.dtype
        return LazyArray(self.shape, dtype, lambda: (self.read() * by).astype(dtype))

    def astype(self, dtype: type[np.generic]) -> LazyArray:
        """In another type."""
        return LazyArray(self.shape, np.dtype(dtype), lambda: self.read().astype(dtype))

    def tensor(self, name: str) -> ir.TensorProtocol:
        """As the value of an initializer."""
        shape = ir.Shape(self.shape)
        return ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(self.read()).reshape(self.shape), name=name),
            dtype=ir.DataType.from_numpy(self.dtype),
            shape=shape,
            name=name,
        )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
