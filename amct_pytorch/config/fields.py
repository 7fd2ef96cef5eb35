"""What the objects of a configuration are made of: strict models and validators of one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from .problems import wrong_type, wrong_value

T = TypeVar("T")


class Strict(BaseModel):
    """Exact types, no unknown keys, no change after validation."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def where(test: Callable[[T], bool], expected: str) -> AfterValidator:
    """A validator that refuses values for which `test` is false."""

    def check(value: T) -> T:
        if not test(value):
            raise wrong_value(expected)
        return value

    return AfterValidator(check)


def one_of(*allowed: int) -> AfterValidator:
    """A validator for an integer out of a few (Literal would take True for 1 and 8.0 for 8)."""
    *first, last = map(str, allowed)
    return where(lambda value: value in allowed, f"{', '.join(first)} or {last}")


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
