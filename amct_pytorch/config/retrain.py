"""The JSON configuration of quantization-aware training: read, check, generate, write."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ValidationError

from ..capability import BY_KIND
from ..files import write_files
from ..graph import Layer, ModelFacts
from .json_file import read_object
from .layer import Strict, where
from .names import quantizable_layers, refused_key
from .problems import Problem, fail, problems_of
from .retrain_layer import LAYER_KEYS, PART_KEYS, PRUNING, WEIGHT, dumped
from .retrain_layer import RetrainLayerConfig as RetrainLayerConfig
from .retrain_limits import retrain_refusals

GLOBAL_KEYS = ("version", "batch_num", "fakequant_precision_mode", "shift_n")
REQUIRED_KEYS = ("version", "batch_num")
NONE_ENABLED = "No layer retrain enabled: expected retrain_enable true in at least one layer"


class RetrainConfig(Strict):
    """What the user wants for a model: the global keys, and an object for each layer."""

    version: Annotated[int, where(lambda v: v == 1, "1")] = 1
    batch_num: Annotated[int, where(lambda n: n > 0, "an integer above 0")] = 1
    fakequant_precision_mode: Literal["DEFAULT", "FORCE_FP16_QUANT"] = "DEFAULT"
    shift_n: bool = False  # search the shift factor N after training
    layers: dict[str, RetrainLayerConfig]

    @property
    def enabled(self) -> dict[str, RetrainLayerConfig]:
        """The layers to train, by name."""
        return {name: layer for name, layer in self.layers.items() if layer.retrain_enable}

    @classmethod
    def generate(cls, facts: ModelFacts) -> RetrainConfig:
        """The default configuration of a model: every layer that can be quantized, with 8 bits.

        Raises ValueError for a model without such a layer.

        >>> conv = Layer("conv", "Conv2d", None, in_channels=3, out_channels=8)
        >>> facts = ModelFacts(layers={"conv": conv}, modules={"conv": "Conv2d"})
        >>> RetrainConfig.generate(facts).layers["conv"].retrain_weight_config.channel_wise
        True
        """
        source = "create_quant_retrain_config"
        names = quantizable_layers(source, facts, (), GLOBAL_KEYS)
        document = {"version": 1, "batch_num": 1, **{name: {} for name in names}}
        return cls.from_document(document, facts, source)

    @classmethod
    def load(cls, path: str, facts: ModelFacts) -> RetrainConfig:
        """Reads a JSON file and checks it against the model; every default is filled in.

        A layer that is not in the file is not trained. Raises FileNotFoundError, IsADirectoryError
        or another OSError if it cannot be read; json.JSONDecodeError; TypeError for a value of a
        wrong type; ValueError for a wrong value, a key that is missing, unknown or there twice,
        for a layer that cannot be quantized, or not so, and if no layer is enabled. All mistakes of
        one kind are in one message.
        """
        return cls.from_document(read_object(path), facts, path)

    @classmethod
    def from_document(
        cls, document: dict[str, Any], facts: ModelFacts, source: str
    ) -> RetrainConfig:
        """Checks the object of a JSON file; `source` stands before each message."""
        problems = [
            Problem((key,), "this key is required, it is missing")
            for key in REQUIRED_KEYS
            if key not in document
        ]
        complete: dict[str, Any] = {}
        for key, value in document.items():
            if key in GLOBAL_KEYS:
                complete[key] = value
            elif problem := refused_key(key, facts, GLOBAL_KEYS, BY_KIND):
                problems.append(problem)
            else:
                problems += _pruning(key, value)
                complete[key] = with_defaults(value, facts.layers[key])
        config, wrong = _validate(complete)
        if problems or config is None:
            fail(source, problems + wrong)
        limits = [
            refusal.problem(name)
            for name, layer in config.enabled.items()
            for refusal in retrain_refusals(layer, facts.layers[name])
        ]
        if limits:
            fail(source, limits)
        if not config.enabled:
            raise ValueError(f"{source}: {NONE_ENABLED}")
        return config

    def dumps(self) -> str:
        """The text of the JSON file, with the layers in the order of the model."""
        document = self.model_dump(exclude={"layers"})
        if self.fakequant_precision_mode == "DEFAULT":
            del document["fakequant_precision_mode"]
        if not self.shift_n:
            del document["shift_n"]
        document |= {name: dumped(layer) for name, layer in self.layers.items()}
        return json.dumps(document, indent=4, separators=(",", ":"))

    def save(self, path: str) -> None:
        """Writes the JSON file at once or not at all; see `files.write_files` for errors."""
        write_files({path: self.dumps()})


def with_defaults(entry: Any, layer: Layer) -> Any:
    """A layer's JSON object with what depends on the layer filled in (pydantic does the rest)."""
    if not isinstance(entry, dict):
        return entry
    entry = {**entry, WEIGHT: entry.get(WEIGHT, {})}
    if isinstance(entry[WEIGHT], dict):
        entry[WEIGHT] = {"channel_wise": BY_KIND[layer.kind].channel_wise, **entry[WEIGHT]}
    return {key: value for key, value in entry.items() if key not in PRUNING}


def layer_problems(entry: Any) -> list[Problem]:
    """The values of a layer's JSON object that are wrong for any layer."""
    try:
        RetrainLayerConfig.model_validate(entry)
    except ValidationError as error:
        return _named(error)
    return []


def _pruning(name: str, entry: Any) -> list[Problem]:
    found = [key for key in PRUNING if isinstance(entry, dict) and key in entry]
    text = "expected no pruning: it is not part of quantization-aware training; remove the key"
    return [Problem((name, key), text) for key in found]


def _validate(flat: dict[str, Any]) -> tuple[RetrainConfig | None, list[Problem]]:
    """The configuration of a JSON object, where layers stand beside the global keys."""
    nested = {key: value for key, value in flat.items() if key in GLOBAL_KEYS}
    nested["layers"] = {key: value for key, value in flat.items() if key not in GLOBAL_KEYS}
    try:
        return RetrainConfig.model_validate(nested), []
    except ValidationError as error:
        found = _named(error)
    # Layers are one level deeper in the model than in the file.
    return None, [
        replace(p, location=p.location[1:]) if p.location[0] == "layers" else p for p in found
    ]


def _named(error: ValidationError) -> list[Problem]:
    return problems_of(error, {"": LAYER_KEYS}, PART_KEYS)
