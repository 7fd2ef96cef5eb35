"""Reading and writing ONNX files; large ones keep their tensors in one file beside them.

A file is read and written one tensor at a time, so that a model is never in memory twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..files import Content
from .model_bytes import large_tensors, model_bytes, without_values
from .model_skeleton import Place, read_skeleton

# Serialized models above this many bytes get external data (protobuf ends at 2 GiB).
EXTERNAL_DATA_LIMIT = 2_000_000_000
ALIGNMENT = 4096  # of a tensor in its file: a page, so that runtimes can map it


def load_model(path: str) -> ir.Model:
    """Reads an ONNX file; tensors in other files are read from there when they are needed.

    Raises FileNotFoundError if a file is missing and ValueError if it is not an ONNX model or its
    tensors are cut off; all name the file.
    """
    try:
        model = _load(path)
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
    return any(isinstance(tensor, _FromOtherFile | ir.ExternalTensor) for tensor in tensors)


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


def _load(path: str) -> ir.Model:
    proto, places = read_skeleton(path)
    inside: dict[str, Place] = {}
    for tensor, place in zip(proto.graph.initializer, places, strict=True):
        if place is None:
            continue
        dtype = ir.DataType(tensor.data_type)
        expected = math.prod(tensor.dims) * int(dtype.itemsize)
        if dtype.itemsize < 1:  # two codes in a byte: onnx_ir takes them apart
            tensor.raw_data = _read(path, *place).tobytes()
        elif place[1] == expected:
            inside[tensor.name] = place
        else:
            raise ValueError(f"expected {expected} bytes for {tensor.name}, found {place[1]}")
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, os.path.dirname(path))
    for name, value in model.graph.initializers.items():
        values = value.const_value
        if name in inside:
            assert values is not None
            value.const_value = _read_when_needed(ir.LazyTensor, values, path, inside[name][0])
        elif isinstance(values, ir.ExternalTensor) and values.dtype.itemsize >= 1:
            start, size = values.offset or 0, os.path.getsize(values.path)
            if start + values.nbytes > size:
                needed = f"{start + values.nbytes} bytes for {name}"
                raise ValueError(f"{values.path}: expected {needed}, found {size}")
            value.const_value = _read_when_needed(_FromOtherFile, values, values.path, start)
    return model


class _FromOtherFile(ir.LazyTensor):
    """A tensor that is in a file beside that of the model, and does not stay in memory."""


def _read_when_needed(
    kind: type[ir.LazyTensor], tensor: ir.TensorProtocol, path: str, start: int
) -> ir.LazyTensor:
    """Reads of a mapped file would count as memory of the process for as long as it is mapped."""
    dtype, shape, name = tensor.dtype, ir.Shape(tensor.shape.numpy()), tensor.name

    def read() -> ir.TensorProtocol:
        array = _read(path, start, tensor.nbytes).view(dtype.numpy())
        return ir.Tensor(array.reshape(tuple(shape.numpy())), dtype=dtype, name=name)

    return kind(read, dtype=dtype, shape=shape, name=name)


def _read(path: str, start: int, length: int) -> NDArray[np.uint8]:
    return np.fromfile(path, np.uint8, length, offset=start)
