"""What the objects of a configuration are made of: strict models and validators of one value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, core_schema

from .problems import wrong_type, wrong_value

T = TypeVar("T")


class Strict(BaseModel):
    """Exact types, no unknown keys, no change after validation.

    The text below a field describes it, in the JSON Schema too.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True, eq=False)  # hashed by identity: keywords may hold lists
class Rule:
    """A validator of one value that the JSON Schema says too, with its keywords."""

    test: Callable[[Any], bool]
    expected: str
    keywords: Mapping[str, Any]

    def check(self, value: T) -> T:
        """The value; raises a PydanticCustomError if it breaks the rule."""
        if not self.test(value):
            raise wrong_value(self.expected)
        return value

    def __get_pydantic_core_schema__(self, of: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(of))

    def __get_pydantic_json_schema__(
        self, of: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(of), **self.keywords}


def limited(expected: str, **limits: float) -> Rule:
    """The rule that a number keeps `limits`, which have the names of JSON Schema's keywords.

    >>> limited("a number above 0", exclusiveMinimum=0).check(0.5)
    0.5
    """
    pairs = [(_KEEPS[keyword], limit) for keyword, limit in limits.items()]
    return Rule(lambda value: all(keeps(value, x) for keeps, x in pairs), expected, limits)


_KEEPS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}


def one_of(*allowed: int) -> Rule:
    """The rule for an integer out of a few (Literal would take True for 1 and 8.0 for 8)."""
    *first, last = map(str, allowed)
    expected = f"{', '.join(first)} or {last}" if first else last
    return Rule(lambda value: value in allowed, expected, {"enum": [*allowed]})


def where(test: Callable[[T], bool], expected: str) -> AfterValidator:
    """A validator that refuses values for which `test` is false; no JSON Schema says so."""

    def check(value: T) -> T:
        if not test(value):
            raise wrong_value(expected)
        return value

    return AfterValidator(check)


def known(*names: str) -> BeforeValidator:
    """A validator that refuses everything but `names`, before one branch asks for its own."""

    def check(value: object) -> object:
        expected = " or ".join(f'"{name}"' for name in names)
        if not isinstance(value, str):
            raise wrong_type(expected)
        if value not in names:
            raise wrong_value(expected)
        return value

    return BeforeValidator(check)


def _only_float(value: object) -> object:
    if not isinstance(value, float):
        raise wrong_type("a number with a fraction, like 0.5")
    return value


def _is_held(clip: float) -> bool:
    return _LEAST <= abs(clip) <= _MOST


# Far enough from the ends of float32 that the width of a clip range is finite and not zero.
_LEAST, _MOST = 2.0**-126, 2.0**126
_HELD = where(_is_held, f"a magnitude from {_LEAST:.3g} to {_MOST:.3g}")
ClipMax = Annotated[float, where(lambda c: c > 0, "a number above 0"), _HELD]
ClipMin = Annotated[float, where(lambda c: c < 0, "a number below 0"), _HELD]
ONLY_FLOAT = BeforeValidator(_only_float)  # where 1 is a mistake for 1.0
