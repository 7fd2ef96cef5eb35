"""Reading a JSON configuration file: one object, no key twice."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..files import read_text
from .problems import Problem, fail, shown

TOO_DEEP = "expected a few objects and lists inside each other, got too many to read"


def read_object(path: str) -> dict[str, Any]:
    """The object in the JSON file `path`.

    Raises FileNotFoundError, IsADirectoryError (an empty path too) or another OSError;
    json.JSONDecodeError, with the file name, for a syntax error; ValueError for a key that appears
    twice in one object, text that is not UTF-8, objects inside each other too deep to read and a
    number too long; TypeError if the file holds no object.
    """
    if not path or os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "expected a configuration file, got a folder", path)
    text = read_text(path)
    try:
        document = json.loads(text, object_pairs_hook=_Object)
        problems = list(_repeated_keys((), document))
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(f"{path}: {error.msg}", error.doc, error.pos) from None
    except RecursionError:
        raise ValueError(f"{path}: {TOO_DEEP}") from None
    except ValueError as error:  # Python reads no integer of thousands of digits
        raise ValueError(f"{path}: expected numbers of a sensible length ({error})") from None
    if not isinstance(document, dict):
        raise TypeError(f"{path}: expected an object, got {shown(document)}")
    if problems:
        fail(path, problems)
    return document


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys it was given more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.repeated = [key for key, count in counts.items() if count > 1]


def _repeated_keys(location: tuple[str | int, ...], value: object) -> Iterator[Problem]:
    if isinstance(value, _Object):
        for key in value.repeated:
            yield Problem((*location, key), "expected each key once in an object, got it twice")
        for key, inner in value.items():
            yield from _repeated_keys((*location, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _repeated_keys((*location, index), inner)
