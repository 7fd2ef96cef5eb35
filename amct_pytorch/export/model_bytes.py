"""The bytes of an ONNX model, tensor by tensor: its weights are never copied into a message.

A protobuf message is its fields one behind the other, each as number and type, length, content.
So the fields of the model and of its graph are serialized without the large tensors, and those go
to the file from where they are, in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import onnx_ir as ir

# Bytes of a tensor that is kept out of messages. Shape inference reads smaller ones, axes and
# shapes, and does not where they are in another file.
SMALLEST = 256
_LENGTH_DELIMITED = 2  # the type of a field whose length comes before it


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
            header = _serialized(tensor) + _key(tensor, "raw_data", values.nbytes)
            initializers += [
                _key(proto.graph, "initializer", len(header) + values.nbytes) + header,
                values,
            ]
        else:
            content = _serialized(tensor)
            initializers.append(_key(proto.graph, "initializer", len(content)) + content)
    before, behind = _around(proto.graph, "initializer")
    graph = ModelBytes((before, *initializers, behind))
    before, behind = _around(proto, "graph")
    return ModelBytes((before + _key(proto, "graph", graph.size), *graph.parts, behind))


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


def _around(message: Any, field: str) -> tuple[bytes, bytes]:
    """The fields with smaller and with larger numbers than `field`."""
    number = message.DESCRIPTOR.fields_by_name[field].number
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


def _key(message: Any, field: str, length: int) -> bytes:
    """What stands before the content of a field: its number and type, and the length."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their top bit set."""
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
