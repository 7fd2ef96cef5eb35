"""The sections of a simplified configuration: which one a layer has, and what of it is left out.

A section is the part of the file that sets up layers: the common one, an override of a type, or an
override of a layer. The closest to a layer applies to it, as a whole.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ValidationError

from ..graph import Layer, ModelFacts
from .limits import Limits, Refusal
from .names import why_not_layer, why_not_type, why_repeated
from .problems import Location, Problem, problems_of, shown

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT")  # of one layer


@dataclass(frozen=True)
class Section(ABC, Generic[ConfigT]):
    """The message of a section and where it is in the file."""

    layer_keys: ClassVar[Mapping[str, Collection[str]]]  # as `problems_of` takes them

    location: Location
    message: Any

    @abstractmethod
    def config(self, layer: Layer) -> ConfigT:
        """The configuration of `layer`; raises ValidationError for a value that is wrong."""

    @abstractmethod
    def at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""

    def problem(self, refusal: Refusal[ConfigT]) -> Problem:
        """`refusal` as a mistake in this section."""
        return self.at(refusal.problem())

    def problems(self) -> list[Problem]:
        """The values that are wrong for any layer."""
        try:
            self.config(_capable("Conv2d"))
        except ValidationError as error:
            return [self.at(problem) for problem in problems_of(error, self.layer_keys)]
        return []


@dataclass(frozen=True)
class Sections(Generic[ConfigT]):
    """All sections of a file, and the limits of the layers they are for."""

    common: Section[ConfigT]
    by_type: dict[str, Section[ConfigT]]
    by_layer: dict[str, Section[ConfigT]]
    limits: Limits[ConfigT]

    @classmethod
    def read(
        cls,
        message: Any,
        common: Section[ConfigT],
        override: Callable[[Location, Any], Section[ConfigT]],
        limits: Limits[ConfigT],
    ) -> Sections[ConfigT]:
        """The sections of a file; `override` makes one from a location and a message."""
        by_type, by_layer = (
            {
                getattr(item, key): override((field, index), item)
                for index, item in enumerate(getattr(message, field))
            }
            for field, key in _OVERRIDES
        )
        return cls(common, by_type, by_layer, limits)

    def of(self, layer: Layer) -> Section[ConfigT]:
        """The section that applies to `layer`."""
        return self.by_layer.get(layer.name) or self.by_type.get(layer.kind) or self.common

    def value_problems(self) -> Iterator[Problem]:
        """Values that are wrong for any layer."""
        for section in (self.common, *self.by_type.values(), *self.by_layer.values()):
            yield from section.problems()

    def limit_problems(self, facts: ModelFacts) -> Iterator[Problem]:
        """What no layer can do, and what an override asks of a type or a layer that cannot."""
        for layer, section in (
            (_capable("Conv2d"), self.common),
            *((_capable(kind), section) for kind, section in self.by_type.items()),
            *((facts.layers[name], section) for name, section in self.by_layer.items()),
        ):
            for refusal in self.limits(section.config(layer), layer):
                if not refusal.packing:
                    yield section.problem(refusal)

    def configs(
        self, path: str, layers: Sequence[Layer], skipped: Collection[str]
    ) -> dict[str, ConfigT]:
        """The configuration of each layer, by name, without what it cannot do.

        A warning says what was left out, but for layers that are skipped.
        """
        configs = {}
        left_out: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for layer in layers:
            section = self.of(layer)
            config = section.config(layer)
            while refusal := next(self.limits(config, layer), None):
                config = refusal.without
                if layer.name not in skipped:
                    left_out[section.problem(refusal).path, refusal.reason].append(layer.name)
            configs[layer.name] = config
        for (place, reason), names in left_out.items():
            logger.warning("%s: %s: left out for %s: %s", path, place, ", ".join(names), reason)
        return configs


_OVERRIDES = (("override_layer_types", "layer_type"), ("override_layer_configs", "layer_name"))


def _capable(kind: str) -> Layer:
    """A layer that can do all that its type can."""
    return Layer("", kind, None, has_bias=True, in_channels=2)


def override_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    """Types and layers of overrides that are unknown, repeated, or cannot be quantized."""

    def why_not_quantized(name: str) -> str:
        reason = facts.layers[name].reason
        return f"{shown(name)} cannot be quantized: {reason}" if reason else ""

    for field, key in _OVERRIDES:
        names = [getattr(item, key) for item in getattr(message, field)]
        repeated = why_repeated(names)
        for index, name in enumerate(names):
            if key == "layer_type":
                text = why_not_type(name, facts)
            else:
                text = why_not_layer(name, facts) or why_not_quantized(name)
            if text := text or repeated.get(index, ""):
                yield Problem((field, index, key), text)


@dataclass(frozen=True)
class Skips:
    """The lists of a file that name what is not quantized."""

    message: Any
    layer_fields: tuple[str, ...]
    type_fields: tuple[str, ...]

    def problems(self, facts: ModelFacts) -> Iterator[Problem]:
        """Types and layers that are unknown."""
        for field in self.type_fields:
            for index, kind in enumerate(getattr(self.message, field)):
                if text := why_not_type(kind, facts):
                    yield Problem((field, index), text)
        for field in self.layer_fields:
            for index, name in enumerate(getattr(self.message, field)):
                if text := why_not_layer(name, facts):
                    yield Problem((field, index), text)

    def repeated(self) -> Iterator[Problem]:
        """Types and layers that one list has twice."""
        for field in (*self.type_fields, *self.layer_fields):
            for index, text in why_repeated(getattr(self.message, field)).items():
                yield Problem((field, index), text)

    def names(self, facts: ModelFacts) -> set[str]:
        """The layers that are skipped, by their name or their type."""
        layers = {name for field in self.layer_fields for name in getattr(self.message, field)}
        kinds = {kind for field in self.type_fields for kind in getattr(self.message, field)}
        return {n for n, layer in facts.layers.items() if n in layers or layer.kind in kinds}
