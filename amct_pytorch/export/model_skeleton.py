"""Reads an ONNX file but the values of its large tensors, which stay in the file."""

from __future__ import annotations

from collections.abc import Callable
from mmap import ACCESS_READ, mmap

import onnx

from .model_bytes import SMALLEST
from .wire import GRAPH, INITIALIZER, RAW_DATA, before_content, fields

Place = tuple[int, int]  # the first byte, and how many


def read_skeleton(path: str) -> tuple[onnx.ModelProto, list[Place | None]]:
    """The model, and for each initializer where its values are, or None where it has them.

    Raises ValueError or an error of protobuf for what is not a model.
    """
    places: list[Place | None] = []
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:

        def of_tensor(start: int, end: int) -> bytes | None:
            places.append(None)
            return _changed(data, start, end, RAW_DATA, values)

        def values(start: int, end: int) -> bytes | None:
            if end - start < SMALLEST:
                return data[start:end]
            places[-1] = (start, end - start)
            return None

        def of_graph(start: int, end: int) -> bytes | None:
            return _changed(data, start, end, INITIALIZER, of_tensor)

        content = _changed(data, 0, len(data), GRAPH, of_graph)
    return onnx.ModelProto.FromString(content), places


def _changed(
    data: mmap, start: int, end: int, number: int, change: Callable[[int, int], bytes | None]
) -> bytes:
    """A message with every field of that number changed, or left out where that gives None."""
    pieces = []
    for field in fields(data, start, end):
        if field.number != number:
            pieces.append(data[field.start : field.end])
        elif (content := change(field.content, field.end)) is not None:
            pieces += [before_content(number, len(content)), content]
    return b"".join(pieces)
