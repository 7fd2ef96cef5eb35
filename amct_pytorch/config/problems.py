"""Mistakes found in a configuration, and the one exception that reports them all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ..suggest import did_you_mean

_EXPECTED_TYPES = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
    "wrong_type": "",  # has its text with it
}
_SHOWN = 20  # mistakes listed in one message


Location = tuple[str | int, ...]  # keys and list indices


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, and the words "expected ..., got ..."."""

    location: Location
    text: str
    wrong_type: bool = False  # TypeError rather than ValueError
    line: int | None = None  # of the file, from 1, where its reader knows it

    @property
    def path(self) -> str:
        """The location as text, like `conv1.activation_quant_params.search_range[0]`."""
        parts = (f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.location)
        return "".join(parts).lstrip(".")

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.location else self.text


def fail(source: str, problems: Sequence[Problem]) -> NoReturn:
    """Raises TypeError or ValueError, as the first of `problems` demands, listing them all.

    >>> fail("config.json", [Problem(("batch_num",), "expected a positive integer, got 0")])
    Traceback (most recent call last):
    ValueError: config.json: batch_num: expected a positive integer, got 0
    """
    lines = [
        f"{source}{'' if problem.line is None else f':{problem.line}'}: {problem}"
        for problem in problems[:_SHOWN]
    ]
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more")
    kind = TypeError if problems[0].wrong_type else ValueError
    raise kind("\n".join(lines))


def fail_at_first(
    source: str, *checks: Iterable[Problem], lines: Mapping[Location, int] | None = None
) -> None:
    """Fails with what the first of `checks` finds; each may rely on those before it.

    `lines` are those of the places in the file, as far as they are known.
    """
    for check in checks:
        if problems := list(check):
            fail(source, [replace(p, line=line_of(p.location, lines or {})) for p in problems])


def line_of(location: Location, lines: Mapping[Location, int]) -> int | None:
    """The line of a place; of what is around it if it is not in the file."""
    places = (location[:end] for end in range(len(location), -1, -1))
    return next((lines[place] for place in places if place in lines), None)


def shown(value: object) -> str:
    """`value` as the user wrote it in JSON, shortened."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def wrong_type(expected: str) -> PydanticCustomError:
    """For validators: the value's type is wrong (TypeError)."""
    return PydanticCustomError("wrong_type", "{text}", {"text": expected})


def wrong_value(expected: str) -> PydanticCustomError:
    """For validators: the value is wrong (ValueError)."""
    return PydanticCustomError("wrong_value", "{text}", {"text": expected})


def problems_of(error: ValidationError, keys: Mapping[str, Collection[str]]) -> list[Problem]:
    """The mistakes pydantic found.

    `keys` gives the keys that an object may have: by "" for the object of a layer, for one inside
    it by its key there or, in a union, by the name of its branch. Names of branches are left out of
    the paths.
    """
    return [_problem(details, keys) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, keys: Mapping[str, Collection[str]]) -> Problem:
    location = tuple(p for p in details["loc"] if p not in keys or p in keys[""])
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        owner = next((part for part in reversed(details["loc"]) if part in keys), "")
        return _unknown_key(location, keys, str(owner))
    expected = _EXPECTED_TYPES.get(kind) or _expected_value(details, context)
    is_type = kind in _EXPECTED_TYPES or (kind == "literal_error" and not isinstance(found, str))
    return Problem(location, f"expected {expected}, got {shown(found)}", is_type)


def _expected_value(details: ErrorDetails, context: Mapping[str, Any]) -> str:
    match details["type"]:
        case "literal_error":
            return str(context["expected"]).replace("'", '"')
        case "finite_number":
            return "a finite number"
        case "invalid_key":
            return "a string for a key"
        case _:
            return details["msg"]


def _unknown_key(location: Location, keys: Mapping[str, Collection[str]], owner: str) -> Problem:
    key = str(location[-1])
    expected = f"expected one of {', '.join(keys[owner])}"
    if owner not in (*keys[""], ""):  # of a union's branches
        expected += f" with {owner}"
    if other := next((name or "the layer" for name in keys if key in keys[name]), None):
        return Problem(location, f"{expected}, got {shown(key)}, a key of {other}")
    return Problem(location, f"{expected}, got {shown(key)}{did_you_mean(key, keys[owner])}")
