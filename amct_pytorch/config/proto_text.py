"""Reading a simplified configuration: protobuf text, with the closest name for a wrong field."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import text_format

from ..files import read_text
from ..float32 import shortest
from ..suggest import did_you_mean
from .messages import message_class
from .problems import Location, line_of
from .proto_lines import lines_of


def parse(path: str, stem: str, name: str) -> tuple[Any, dict[Location, int]]:
    """The text file `path` as the message `name` of `proto/<stem>.proto`, and lines from 1.

    Raises FileNotFoundError or another OSError if the file cannot be read; ParseError of
    google.protobuf.text_format, with file and line, for text that does not parse, an unknown field,
    a field twice or a required one missing.
    """
    text = read_text(path, text_format.ParseError)
    message = message_class(stem, name)()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        line, reason = error.GetLine() or 1, str(error).partition(" : ")[2] or str(error)
        hint = _closest_field(reason, message.DESCRIPTOR.file)
        raise text_format.ParseError(f"{path}:{line}: {reason.rstrip('.')}{hint}") from None
    lines = lines_of(text, message.DESCRIPTOR)
    if missing := message.FindInitializationErrors():
        where = line_of(_location(missing[0]), lines) or 1
        raise text_format.ParseError(f"{path}:{where}: {missing[0]}: required, found none")
    return message, lines


def decimal(value: float) -> float:
    """0.01 for the float32 that a field with 0.01 holds."""
    return shortest([value])[0]


def if_set(message: Any, field: str) -> dict[str, Any]:
    """The value of `field` by its name, or nothing if the text does not give it."""
    return {field: getattr(message, field)} if message.HasField(field) else {}


def _location(path: str) -> Location:
    """That of a path as protobuf writes it, like `skip_layers[1]`."""
    found = re.finditer(r"(\w+)|\[(\d+)\]", path)
    return tuple(int(part[2]) if part[2] else part[1] for part in found)


def _closest_field(reason: str, file: Any) -> str:
    """The field that an unknown one may stand for; protobuf's message names it."""
    unknown = re.search(r'type "\w+\.(\w+)" has no field named "(\w+)"', reason)
    if not unknown:
        return ""
    return did_you_mean(unknown[2], file.message_types_by_name[unknown[1]].fields_by_name)
