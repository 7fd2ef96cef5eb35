"""Reading a simplified configuration: protobuf text, or YAML or JSON of the same structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .json_file import read_object
from .message_tree import fill_message
from .messages import message_class
from .problems import Location, fail_at_first
from .proto_text import parse
from .yaml_file import read_yaml


def read_message(path: str, stem: str, name: str) -> tuple[Any, dict[Location, int]]:
    """The file `path` as the message `name` of `proto/<stem>.proto`, and the lines of its fields.

    The suffix decides: .yaml and .yml are YAML, .json is JSON, all others are protobuf text. In
    YAML and JSON a message is an object with the names of its fields for keys, and the value of an
    enum is its name.

    Raises FileNotFoundError or another OSError if the file cannot be read. For text that does not
    parse, an unknown field, one twice or a required one missing, two fields of a oneof: ParseError
    of google.protobuf.text_format with file and line for protobuf text, ValueError with file and
    line for YAML, ValueError with the path inside the file for JSON (json.JSONDecodeError if it
    does not parse). A value of a wrong type is a TypeError in YAML and JSON. JSON has no lines.
    """
    lines: dict[Location, int] = {}
    match Path(path).suffix.lower():
        case ".yaml" | ".yml":
            tree, lines = read_yaml(path)
        case ".json":
            tree = read_object(path)
        case _:
            return parse(path, stem, name)
    message = message_class(stem, name)()
    fail_at_first(path, fill_message(message, tree), lines=lines)
    return message, lines
