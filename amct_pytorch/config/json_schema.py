"""The JSON Schema of the quantization config, for editors: as a program, writes `schema.json`.

All that it says comes from the models that read a configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from .document import SCHEMA_KEY
from .ptq import QuantConfig

FILE = Path(__file__).parent / "schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def quant_config_schema() -> dict[str, Any]:
    """The schema: global keys beside an object for each layer.

    What depends on the model is not in it: the names of layers and what each of them can do.
    """
    models = QuantConfig.model_json_schema(schema_generator=_AsInTheFile)
    layers = models["properties"].pop("layers")
    for definition in models["$defs"].values():
        definition.pop("required", None)  # what is left out is filled in before validation
    models["$defs"]["AdaConfig"]["required"] = ["wts_algo"]  # without it, it is an ArqConfig
    return {
        "$schema": DIALECT,
        "title": "Quantization config of amct_pytorch",
        "description": models["description"],
        "type": "object",
        "properties": {
            SCHEMA_KEY: {"type": "string", "description": "Where this schema is; not read."},
            **models["properties"],
            "joint_quant": {"const": False, "description": "Of older files; has no effect."},
        },
        "additionalProperties": layers["additionalProperties"],
        "$defs": models["$defs"],
    }


def dumps() -> str:
    """The text of `schema.json`."""
    return json.dumps(quant_config_schema(), indent=2) + "\n"


class _AsInTheFile(GenerateJsonSchema):
    """Where a file differs from the models: a key is left out, never null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def literal_schema(self, schema: core_schema.LiteralSchema) -> dict[str, Any]:
        # In one form, which that of pydantic changes with its version.
        first, *others = schema["expected"]
        return {"enum": [first, *others]} if others else {"const": first}

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        # An object without keys of either branch fits both, which oneOf refuses.
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # it would repeat the key


if __name__ == "__main__":
    FILE.write_text(dumps())
