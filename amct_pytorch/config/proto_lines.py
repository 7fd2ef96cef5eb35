"""Where the fields of a protobuf text stand: its parser does not tell."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from .problems import Location

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
    r"""|[{}<>\[\],;:]|[^\s{}<>\[\],;:"'#]+""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">"}
_QUOTES = ('"', "'")


def lines_of(text: str, descriptor: Any) -> dict[Location, int]:
    """The line, from 1, of every field in a text that protobuf has read as `descriptor`.

    >>> from .messages import message_class
    >>> config = message_class("calibration_config_pytorch", "AMCTPytorchProto.AMCTConfig")
    >>> lines_of('batch_num: 2\\nskip_layers: ["a",\\n"b"]', config.DESCRIPTOR)
    {('batch_num',): 1, ('skip_layers', 0): 2, ('skip_layers', 1): 3}
    """
    scanner = _Scanner(text)
    scanner.message(descriptor, (), "")
    return scanner.lines


class _Scanner:
    """Walks over the tokens of a text whose braces are in order."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Location, int] = {}
        self._tokens: list[tuple[str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match["skip"] is None:
                self._tokens.append((match[0], line))
            line += match[0].count("\n")
        self._tokens.append(("", line))
        self._next = 0

    def message(self, descriptor: Any, location: Location, closing: str) -> None:
        """The fields up to the token `closing`, and behind it."""
        seen: Counter[str] = Counter()
        while self._peek() not in ("", closing):
            name, line = self._take()
            field = descriptor.fields_by_name.get(name)
            if self._peek() == ":":
                self._take()
            repeated = field is not None and isinstance(field.default_value, list)
            listed = self._peek() == "["
            if listed:
                self._take()
            while not (listed and self._peek() == "]"):
                place = (*location, name, seen[name]) if repeated else (*location, name)
                seen[name] += 1
                self.lines[place] = self._tokens[self._next][1] if listed else line
                self._value(field, place)
                if not listed:
                    break
                if self._peek() == ",":
                    self._take()
            if listed:
                self._take()
            if self._peek() in (",", ";"):
                self._take()
        self._take()

    def _value(self, field: Any, location: Location) -> None:
        if self._peek() in _CLOSING:
            closing = _CLOSING[self._take()[0]]
            self.message(field.message_type, location, closing)
            return
        sign = self._take()[0]
        if sign == "-":
            self._take()
        while sign.startswith(_QUOTES) and self._peek().startswith(_QUOTES):  # one string in parts
            self._take()

    def _peek(self) -> str:
        return self._tokens[self._next][0]

    def _take(self) -> tuple[str, int]:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token
