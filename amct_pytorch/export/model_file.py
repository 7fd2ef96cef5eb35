"""Reading and writing ONNX files; large ones keep their tensors in one file beside them.

Such a file is read and written one tensor at a time, so that a model is never in memory twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from ..files import Content
from .model_bytes import large_tensors, model_bytes, without_values

# Serialized models above this many bytes get external data (protobuf ends at 2 GiB).
EXTERNAL_DATA_LIMIT = 2_000_000_000
ALIGNMENT = 4096  # of a tensor in its file: a page, so that runtimes can map it


def load_model(path: str) -> ir.Model:
    """Reads an ONNX file; tensors in other files are read from there when they are needed.

    Raises FileNotFoundError if a file is missing and ValueError if it is not an ONNX model or its
    tensors are cut off; all name the file.
    """
    try:
        model = ir.load(path)
        if model.graph is not None:
            for value in model.graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = _read_when_needed(value.const_value)
    except FileNotFoundError as error:
        missing = error.filename or path
        raise FileNotFoundError(error.errno, "file of the ONNX model not found", missing) from None
    except IsADirectoryError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable ONNX model ({error})") from error
    if model.graph is None or not list(model.graph.outputs):
        raise ValueError(f"{path}: not an ONNX model: its graph has no outputs")
    return model


def has_external_data(model: ir.Model) -> bool:
    """Whether a tensor of a loaded `model` is in another file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return any(isinstance(tensor, _FromFile | ir.ExternalTensor) for tensor in tensors)


def model_files(model: ir.Model, path: str, external: bool = False) -> dict[str, Content]:
    """The contents of `path` and, above the limit or if `external`, of `<path>.data` beside it.

    Tensors are read when the files are written.
    """
    inside = model_bytes(model)
    if not external and inside.size <= EXTERNAL_DATA_LIMIT:
        return {path: inside.write}
    tensors = large_tensors(model)
    data_name = f"{os.path.basename(path)}.data"
    starts, end = [], 0
    for tensor in tensors.values():
        starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = starts[-1] + tensor.nbytes
    places = {name: (data_name, start) for name, start in zip(tensors, starts, strict=True)}
    with without_values(model, places):
        content = ir.to_proto(model).SerializeToString(deterministic=True)
    data = _Data(list(zip(tensors.values(), starts, strict=True)))
    return {path: content, f"{path}.data": data.write}


@dataclass(frozen=True)
class _Data:
    """The file of the tensors of a model: each from a byte of its own on."""

    tensors: Sequence[tuple[ir.TensorProtocol, int]]

    def write(self, file: BinaryIO) -> None:
        end = 0
        for tensor, start in self.tensors:
            file.write(bytes(start - end))
            tensor.tofile(file)  # type: ignore[attr-defined]
            end = start + tensor.nbytes


class _FromFile(ir.LazyTensor):
    """A tensor that is in another file and does not stay in memory."""


def _read_when_needed(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Reads of a mapped file would count as memory of the process for as long as it is mapped."""
    size, start = os.path.getsize(tensor.path), tensor.offset or 0
    if tensor.dtype.itemsize < 1:  # two codes in a byte: onnx_ir takes them apart
        return tensor
    if start + tensor.nbytes > size:
        raise ValueError(
            f"{tensor.path}: expected {start + tensor.nbytes} bytes for {tensor.name}, found {size}"
        )

    def read() -> ir.TensorProtocol:
        content = np.fromfile(tensor.path, np.uint8, tensor.nbytes, offset=start)
        shape = tuple(tensor.shape.numpy())
        array = content.view(tensor.dtype.numpy()).reshape(shape)
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

    return _FromFile(read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape), name=tensor.name)
