"""The bytes of an ONNX model, tensor by tensor: its weights are never copied into a message.

The fields of the model and of its graph are serialized without the large tensors, and those go to
the file from where they are, in their place among them. `model_skeleton` reads such a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import onnx_ir as ir

from .wire import GRAPH, INITIALIZER, RAW_DATA, before_content

# Bytes of a tensor that is kept out of messages. Shape inference reads smaller ones, axes and
# shapes, and does not where they are in another file.
SMALLEST = 256


@dataclass(frozen=True)
class ModelBytes:
    """The content of a file: bytes, and tensors that are written from where they are."""

    parts: tuple[bytes | ir.TensorProtocol, ...]

    @property
    def size(self) -> int:
        return sum(len(p) if isinstance(p, bytes) else p.nbytes for p in self.parts)

    def write(self, file: BinaryIO) -> None:
        for part in self.parts:
            if isinstance(part, bytes):
                file.write(part)
            else:
                part.tofile(file)  # type: ignore[attr-defined]


def model_bytes(model: ir.Model) -> ModelBytes:
    """All of `model`, the values of its tensors included."""
    large = large_tensors(model)
    with without_values(model, dict.fromkeys(large, ("", 0))):
        proto = ir.to_proto(model)
    initializers: list[bytes | ir.TensorProtocol] = []
    for tensor in proto.graph.initializer:
        values = large.get(tensor.name)
        if values is not None:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            header = _serialized(tensor) + before_content(RAW_DATA, values.nbytes)
            whole = len(header) + values.nbytes
            initializers += [before_content(INITIALIZER, whole) + header, values]
        else:
            content = _serialized(tensor)
            initializers.append(before_content(INITIALIZER, len(content)) + content)
    before, behind = _around(proto.graph, INITIALIZER)
    graph = ModelBytes((before, *initializers, behind))
    before, behind = _around(proto, GRAPH)
    return ModelBytes((before + before_content(GRAPH, graph.size), *graph.parts, behind))


def large_tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The tensors to keep out of messages, by the name of their initializer."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= SMALLEST
    }


@contextmanager
def without_values(model: ir.Model, places: Mapping[str, tuple[str, int]]) -> Iterator[None]:
    """Lets the initializers in `places` stand in a file, from a byte on, inside the context."""
    values = [model.graph.initializers[name] for name in places]
    kept = [value.const_value for value in values]
    try:
        for value, tensor, (file, start) in zip(values, kept, places.values(), strict=True):
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                file,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
            )
        yield
    finally:
        for value, tensor in zip(values, kept, strict=True):
            value.const_value = tensor


def _serialized(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The fields with smaller and with larger numbers."""
    return (
        _only(message, lambda other: other < number),
        _only(message, lambda other: other > number),
    )


def _only(message: Any, wanted: Callable[[int], bool]) -> bytes:
    part = type(message)()
    part.CopyFrom(message)
    for descriptor, _ in message.ListFields():
        if not wanted(descriptor.number):
            part.ClearField(descriptor.name)
    return _serialized(part)
