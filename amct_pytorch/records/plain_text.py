"""Reads the text of a record file quickly where it is as `Records.dumps` writes it.

Protobuf's parser needs some microseconds for each number, and a record has two of them for every
output channel of the model. Here all numbers of a field are read at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_COMMENTS = re.compile(r"(?:#[^\n]*\n)*")
_RECORD = re.compile(
    r'record \{\n  key: "([^"\\\n]+)"\n((?:  \w+ \{\n(?:    [^\n]*\n)*  \}\n)+)\}\n'
)
_PART = re.compile(r"  (\w+) \{\n((?:    [^\n]*\n)*)  \}\n")
# A decimal number, which Python and protobuf read alike; a repeated field has one in a line.
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-][0-9]+)?"
_NUMBERS = re.compile(rf"    (\w+): {_NUMBER}\n(?:    \1: {_NUMBER}\n)*")
_WORD = re.compile(r'    (\w+): (?:"([^"\\\n]*)"|(true|false))\n')

_CONVERT: dict[int, Callable[[str], float]] = {
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_UINT32: int,
}


def read_plain(text: str, message: Any) -> bool:
    """Puts the records of `text` into a ScaleOffsetRecord; False where they are not plain.

    The message is then of no use; protobuf's parser reads the text, or says what is wrong with it.
    """
    comments = _COMMENTS.match(text)
    assert comments is not None
    position = comments.end()
    try:
        while position < len(text):
            record = _matched(_RECORD, text, position)
            entry = message.record.add(key=record[1])
            for part in _PART.finditer(record[2]):
                if entry.HasField(part[1]):
                    return False
                fields = getattr(entry, part[1])
                fields.SetInParent()
                _read_fields(part[2], fields)
            position = record.end()
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


def _read_fields(text: str, message: Any) -> None:
    position = 0
    while position < len(text):
        line = _NUMBERS.match(text, position) or _matched(_WORD, text, position)
        name = line[1]
        kind = message.DESCRIPTOR.fields_by_name[name].cpp_type
        if line.re is _NUMBERS:
            values = list(map(_CONVERT[kind], line[0].split()[1::2]))
            if hasattr(getattr(message, name), "extend"):
                getattr(message, name).extend(values)
            else:
                _set(message, name, *values)
        elif line[3] is None:
            _set(message, name, line[2])
        elif kind == FieldDescriptor.CPPTYPE_BOOL:
            _set(message, name, line[3] == "true")
        else:
            raise ValueError(name)
        position = line.end()


def _set(message: Any, name: str, value: float | str) -> None:
    if message.HasField(name):
        raise ValueError(f"{name}: twice")
    setattr(message, name, value)


def _matched(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    found = pattern.match(text, position)
    if found is None:
        raise ValueError(f"not plain at {position}")
    return found
