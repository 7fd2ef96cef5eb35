"""Reading a YAML file as JSON values, with the line that each comes from.

Plain words are what YAML 1.2 takes them for: `yes` and `on` are strings, 1e-2 is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from ..files import read_text
from .json_file import TOO_DEEP
from .problems import Location, Problem, fail


def read_yaml(path: str) -> tuple[Any, dict[Location, int]]:
    """The value in the YAML file `path` (an empty object for an empty file), and lines from 1.

    Raises FileNotFoundError or another OSError if the file cannot be read; ValueError, with file
    and line, for text that is not UTF-8 or not YAML, a key twice in one object, and a value that
    JSON has none for, like a tagged one or an object inside itself; ValueError for objects inside
    each other too deep to read and for aliases that stand for more than a million values.
    """
    text = read_text(path)
    reader = _Reader()
    try:
        root = yaml.compose(text, Loader=_Loader)
        value = {} if root is None else reader.value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        raise ValueError(f"{place}: expected YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: {TOO_DEEP}") from None
    except _TooManyError:
        text = f"expected at most {_MOST_VALUES} values, got more, by aliases of aliases"
        raise ValueError(f"{path}: {text}") from None
    if reader.problems:
        fail(path, reader.problems)
    return {} if value is None else value, reader.lines


_MOST_VALUES = 1_000_000
_TAG = "tag:yaml.org,2002:"
# Tag of a plain value -> how it is written, its first characters, how it is read.
_PLAIN: dict[str, tuple[str, list[str], Callable[[str], object]]] = {
    f"{_TAG}null": (r"~|null|Null|NULL|", [*"~nN", ""], lambda text: None),
    f"{_TAG}bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"], lambda text: text[0] in "tT"),
    f"{_TAG}int": (r"[-+]?[0-9]+", [*"-+0123456789"], int),
    f"{_TAG}float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
        [*"-+.0123456789"],
        float,
    ),
}


class _Loader(yaml.SafeLoader):
    """Leaves a plain word a string if it is none of the above."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (mypy: it is declared as one of the instance)


for _tag, (_pattern, _first, _) in _PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), _first)


class _TooManyError(Exception):
    """Aliases stand for more values than could be read in a reasonable time."""


class _Reader:
    """Turns the nodes of a file into values; keeps where they were and what is wrong."""

    def __init__(self) -> None:
        self.lines: dict[Location, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, location: Location, around: tuple[yaml.Node, ...] = ()) -> Any:
        self.lines.setdefault(location, node.start_mark.line + 1)
        if len(self.lines) > _MOST_VALUES:
            raise _TooManyError
        inside = (*around, node)
        if node in around:
            return self._refuse(location, "expected a value, got an alias of what is around it")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return {
                key: self.value(value, (*location, key), inside)
                for key, value in self._members(node, location)
            }
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(v, (*location, i), inside) for i, v in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return node.value
        if node.tag in _PLAIN and re.fullmatch(_PLAIN[node.tag][0], node.value):
            try:
                return _PLAIN[node.tag][2](node.value)
            except ValueError as error:  # Python reads no integer of thousands of digits
                return self._refuse(location, f"expected a number of a sensible length ({error})")
        return self._refuse(location, f"expected a plain value, got one tagged {node.tag}")

    def _members(self, node: yaml.MappingNode, location: Location) -> Iterator[tuple[str, Any]]:
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                text = "expected a word before the colon, got a list or an object"
                self.problems.append(Problem(location, text, line=line))
                continue
            place = (*location, key.value)
            self.lines[place] = key.start_mark.line + 1
            if key.value in seen:
                self._refuse(place, "expected each key once in an object, got it twice")
            seen.add(key.value)
            yield key.value, value

    def _refuse(self, location: Location, text: str) -> None:
        self.problems.append(Problem(location, text, line=self.lines[location]))
