"""Filling a protobuf message from objects and lists, as YAML and JSON give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from ..suggest import did_you_mean
from .problems import Location, Problem, shown

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
}
_MOST = 2.0**128 - 2.0**104  # of float32


def fill_message(message: Any, value: object, location: Location = ()) -> Iterator[Problem]:
    """Sets the fields of `message` that the object `value` has, by name; yields its mistakes."""
    if not isinstance(value, Mapping):
        hint = "; {} is one with all defaults" if value is None else ""
        yield Problem(location, f"expected an object, got {shown(value)}{hint}", wrong_type=True)
        return
    fields = message.DESCRIPTOR.fields_by_name
    chosen: dict[str, str] = {}  # the field that a oneof has, by its name
    for key, inner in value.items():
        place = (*location, key)
        if key not in fields:
            names = ", ".join(fields)
            yield Problem(
                place, f"expected one of {names}, got {shown(key)}{did_you_mean(key, fields)}"
            )
            continue
        oneof = fields[key].containing_oneof
        if oneof is not None and chosen.setdefault(oneof.name, key) != key:
            text = f"expected either {chosen[oneof.name]} or {key}, got both"
            yield Problem(place, text)
            continue
        yield from _fill_field(message, fields[key], inner, place)
    for key in message.FindInitializationErrors():
        if key in fields and key not in value:  # others belong to a message inside
            yield Problem((*location, key), "required, found none")


def _fill_field(message: Any, field: Any, value: object, location: Location) -> Iterator[Problem]:
    into = getattr(message, field.name)
    if not isinstance(field.default_value, list):  # how all versions of protobuf show a plain field
        if field.message_type is not None:
            into.SetInParent()
            yield from fill_message(into, value, location)
        elif problem := _problem(field, value, location):
            yield problem
        else:
            setattr(message, field.name, _stored(field, value))
        return
    if not isinstance(value, list):
        yield Problem(location, f"expected a list, got {shown(value)}", wrong_type=True)
        return
    for index, item in enumerate(value):
        place = (*location, index)
        if field.message_type is not None:
            yield from fill_message(into.add(), item, place)
        elif problem := _problem(field, item, place):
            yield problem
        else:
            into.append(_stored(field, item))


def _stored(field: Any, value: Any) -> Any:
    return value if field.enum_type is None else field.enum_type.values_by_name[value].number


def _problem(field: Any, value: object, location: Location) -> Problem | None:
    """What is wrong with one value of a field that is no message."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    hint = ""
    if field.enum_type is not None:
        names = field.enum_type.values_by_name
        expected = " or ".join(f'"{name}"' for name in names)
        fits = isinstance(value, str)
        right = fits and value in names  # what is no string need not have a hash
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
    elif field.cpp_type == field.CPPTYPE_STRING:
        expected, fits, right = "a string", isinstance(value, str), True
        hint = "; put it in quotes" if number else ""
    elif field.cpp_type == field.CPPTYPE_BOOL:
        expected, fits, right = "true or false", isinstance(value, bool), True
    elif field.cpp_type == field.CPPTYPE_FLOAT:
        expected, fits = "a number that float32 holds", number
        right = isinstance(value, int | float) and abs(value) <= _MOST
    else:
        least, most = _RANGES[field.cpp_type]
        fits = isinstance(value, int) and number
        right = isinstance(value, int) and least <= value <= most
        expected = f"an integer from {least} to {most}"
    if fits and right:
        return None
    return Problem(location, f"expected {expected}, got {shown(value)}{hint}", wrong_type=not fits)
