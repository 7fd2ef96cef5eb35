"""What the JSON configurations share: global keys, and beside them an object for each layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ValidationError

from ..files import write_files
from ..graph import Layer, ModelFacts
from .fields import Strict, limited, one_of
from .names import refused_key
from .problems import Problem, fail, problems_of, shown

SCHEMA_KEY = "$schema"  # where an editor looks for the schema of a file; read, never written
Precision = Literal["DEFAULT", "FORCE_FP16_QUANT"]

LayerT = TypeVar("LayerT", bound=Strict)
ConfigT = TypeVar("ConfigT", bound="ModelConfig[Any]")


class ModelConfig(Strict, Generic[LayerT]):
    """What the user wants for a model; subclasses say what for a layer."""

    layer_keys: ClassVar[Mapping[str, Collection[str]]]  # as `problems_of` takes them
    written_if_set: ClassVar[Collection[str]] = {"fakequant_precision_mode"}

    version: Annotated[int, one_of(1)] = 1
    """Of the format of this file."""
    batch_num: Annotated[int, limited("an integer above 0", exclusiveMinimum=0)] = 1
    """Batches of data that the ranges of the activations are found from."""
    layers: dict[str, LayerT]

    @classmethod
    def global_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object that name no layer."""
        return (*(key for key in cls.model_fields if key != "layers"), SCHEMA_KEY)

    def names_in_file(self) -> list[str]:
        """The layers in the order they are written."""
        return list(self.layers)

    def dumps(self) -> str:
        """The text of the JSON file."""
        fields = type(self).model_fields
        unset = {key for key in self.written_if_set if getattr(self, key) == fields[key].default}
        document = self.model_dump(exclude={"layers", *unset})
        for name in self.names_in_file():
            document[name] = self.layers[name].model_dump(exclude_none=True)
        return json.dumps(document, indent=4, separators=(",", ":"))

    def save(self, path: str) -> None:
        """Writes the JSON file at once or not at all; see `files.write_files` for errors."""
        write_files({path: self.dumps()})

    @classmethod
    def read(
        cls: type[ConfigT],
        document: Mapping[str, Any],
        facts: ModelFacts,
        source: str,
        complete: Callable[[Any, Layer], Any],
        found: Sequence[Problem] = (),
    ) -> ConfigT:
        """The configuration of a JSON object; `complete` fills in what depends on the layer.

        Raises TypeError or ValueError with all mistakes, those that were `found` before included.
        """
        problems = list(found)
        nested: dict[str, Any] = {"layers": {}}
        for key, value in document.items():
            if key == SCHEMA_KEY:
                if not isinstance(value, str):
                    text = f"expected a string, got {shown(value)}"
                    problems.append(Problem((key,), text, wrong_type=True))
            elif key in cls.global_keys():
                nested[key] = value
            elif problem := refused_key(key, facts, cls.global_keys()):
                problems.append(problem)
            else:
                nested["layers"][key] = complete(value, facts.layers[key])
        try:
            config = cls.model_validate(nested)
        except ValidationError as error:
            problems += map(_in_the_file, problems_of(error, cls.layer_keys))
        if problems:
            order = {key: index for index, key in enumerate(document)}
            fail(source, sorted(problems, key=lambda p: order.get(str(p.location[0]), -1)))
        return config


def _in_the_file(problem: Problem) -> Problem:
    """`problem` of the model, where layers are one level deeper than in the file."""
    inside = problem.location[0] == "layers"
    return replace(problem, location=problem.location[1:]) if inside else problem


def fill(entry: dict[str, Any], part: str, key: str, default: object) -> dict[str, Any]:
    """`entry` with a default for `key` of its object `part`; pydantic does the others.

    >>> fill({"a": {"x": 1}}, "a", "y", 2), fill({}, "a", "y", 2)
    ({'a': {'y': 2, 'x': 1}}, {'a': {'y': 2}})
    """
    inner = entry.get(part, {})
    return {**entry, part: {key: default, **inner}} if isinstance(inner, dict) else entry
