"""The bytes of a protobuf message: its fields, one behind the other.

A field is its number and type, then its content. The content of strings, bytes and messages has its
length before it. Lengths, and number and type, are of seven bits a byte, the lowest first; all
bytes but the last have their top bit set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

# Numbers of fields: of the graph in a model, of an initializer in a graph, of the values in that.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9

_VARINT, _EIGHT_BYTES, _WITH_LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # types


@dataclass(frozen=True)
class Field:
    """Where a field is."""

    number: int
    start: int
    content: int  # where its content starts
    end: int


def before_content(number: int, length: int) -> bytes:
    """What stands before a content of so many bytes."""
    return _varint(number << 3 | _WITH_LENGTH) + _varint(length)


def fields(data: bytes | mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between two places; ValueError where there is none."""
    while start < end:
        key, content = _read_varint(data, start, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, stop = _read_varint(data, content, end)
        elif kind == _WITH_LENGTH:
            length, content = _read_varint(data, content, end)
            stop = content + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = content + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"field {number} at byte {start} is of type {kind}, which none is")
        if stop > end:
            raise ValueError(f"field {number} at byte {start} ends at {stop}, beyond {end}")
        yield Field(number, start, content, stop)
        start = stop


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _read_varint(data: bytes | mmap, start: int, end: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for position in range(start, end):
        byte = data[position]
        value |= (byte & 0x7F) << 7 * (position - start)
        if byte < 0x80:
            return value, position + 1
    raise ValueError(f"cut off at byte {end}")
