"""The JSON configuration of post-training quantization: read, check, generate, write."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError

from ..capability import BY_KIND
from ..files import write_files
from ..graph import Layer, ModelFacts
from .json_file import read_object
from .layer import KEYS, LayerConfig, Strict, where
from .layer import ActivationConfig as ActivationConfig
from .layer import WeightConfig as WeightConfig
from .limits import refusals
from .names import GLOBAL_KEYS, checked_skips, fusion_problems, quantizable_layers, refused_key
from .problems import Problem, fail, problems_of, shown

logger = logging.getLogger(__name__)


class QuantConfig(Strict):
    """What the user wants for a model: the global keys, and an object for each layer."""

    version: Annotated[int, where(lambda v: v == 1, "1")] = 1
    batch_num: Annotated[int, where(lambda n: n > 0, "an integer above 0")] = 1
    activation_offset: bool = True
    do_fusion: bool = True
    fakequant_precision_mode: Literal["DEFAULT", "FORCE_FP16_QUANT"] = "DEFAULT"
    skip_fusion_layers: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
    ] = ()
    layers: dict[str, LayerConfig]

    @property
    def enabled(self) -> dict[str, LayerConfig]:
        """The layers to quantize, by name."""
        return {name: layer for name, layer in self.layers.items() if layer.quant_enable}

    @classmethod
    def generate(
        cls,
        facts: ModelFacts,
        skip_layers: list[str] | None = None,
        batch_num: int = 1,
        activation_offset: bool = True,
    ) -> QuantConfig:
        """The default configuration of a model; layers in `skip_layers` are there but disabled.

        Raises TypeError for an argument of a wrong type; ValueError for a batch_num below 1, a
        skipped name that is unknown, repeated or of no quantizable type, a model without a
        quantizable layer, or one where all are skipped.

        >>> conv = Layer("conv", "Conv2d", None, in_channels=3, out_channels=8)
        >>> facts = ModelFacts(layers={"conv": conv}, modules={"conv": "Conv2d"})
        >>> QuantConfig.generate(facts).layers["conv"].weight_quant_params.channel_wise
        True
        """
        skipped = checked_skips(skip_layers, facts)
        document: dict[str, Any] = {"batch_num": batch_num, "activation_offset": activation_offset}
        if problems := _validate(document)[1]:
            fail("create_quant_config", problems)
        for name in quantizable_layers("create_quant_config", facts, skipped):
            document[name] = {"quant_enable": name not in skipped}
        return cls.from_document(document, facts, "create_quant_config")

    @classmethod
    def load(cls, path: str, facts: ModelFacts) -> QuantConfig:
        """Reads a JSON file and checks it against the model; every default is filled in.

        Raises FileNotFoundError, IsADirectoryError or another OSError if it cannot be read;
        json.JSONDecodeError; TypeError for a value of a wrong type; ValueError for a wrong value, a
        key that appears twice or is unknown, a layer that cannot be quantized, or not so;
        RuntimeError if no layer is enabled. All mistakes of one kind are in one message.
        """
        config = cls.from_document(read_object(path), facts, path)
        if not config.enabled:
            text = "expected at least one layer with quant_enable true, found none"
            raise RuntimeError(f"{path}: {text}")
        return config

    @classmethod
    def from_document(cls, document: dict[str, Any], facts: ModelFacts, source: str) -> QuantConfig:
        """Checks the object of a JSON file; `source` stands before each message."""
        document = _without_joint_quant(document, source)
        offset = document.get("activation_offset", True)
        complete: dict[str, Any] = {}
        problems: list[Problem] = []
        for key, value in document.items():
            if key in GLOBAL_KEYS:
                complete[key] = value
            elif problem := refused_key(key, facts):
                problems.append(problem)
            else:
                complete[key] = with_defaults(value, facts.layers[key], offset is not False)
        config, wrong = _validate(complete)
        if problems or config is None:
            order = list(document)
            fail(source, sorted(problems + wrong, key=lambda p: order.index(str(p.location[0]))))
        limits = list(fusion_problems(config.skip_fusion_layers, facts))
        for name, layer in config.enabled.items():
            limits += [refusal.problem(name) for refusal in refusals(layer, facts.layers[name])]
        if limits:
            fail(source, limits)
        silent = [k for k, v in document.items() if k in config.layers and "quant_enable" not in v]
        if silent:
            text = "%s: no quant_enable for %s: not quantized"
            logger.warning(text, source, ", ".join(silent))
        return config

    def dumps(self) -> str:
        """The text of the JSON file."""
        document = self.model_dump(exclude={"layers"})
        if self.fakequant_precision_mode == "DEFAULT":
            del document["fakequant_precision_mode"]
        for name in sorted(self.layers):
            document[name] = self.layers[name].model_dump(exclude_none=True)
        return json.dumps(document, indent=4, separators=(",", ":"))

    def save(self, path: str) -> None:
        """Writes the JSON file at once or not at all; see `files.write_files` for errors."""
        write_files({path: self.dumps()})


def with_defaults(entry: Any, layer: Layer, asymmetric: bool) -> Any:
    """A layer's JSON object with what depends on the layer filled in (pydantic does the rest)."""
    if not isinstance(entry, dict):
        return entry
    can = BY_KIND[layer.kind]
    entry = {
        "quant_enable": False,
        "activation_quant_params": {},
        "weight_quant_params": {},
        **entry,
    }
    for key, name, default in (
        ("activation_quant_params", "asymmetric", asymmetric and can.asymmetric),
        ("weight_quant_params", "channel_wise", can.channel_wise),
    ):
        if isinstance(entry[key], dict):
            entry[key] = {name: default, **entry[key]}
    return entry


def _validate(flat: dict[str, Any]) -> tuple[QuantConfig | None, list[Problem]]:
    """The configuration of a JSON object, where layers stand beside the global keys."""
    nested = {key: value for key, value in flat.items() if key in GLOBAL_KEYS}
    nested["layers"] = {key: value for key, value in flat.items() if key not in GLOBAL_KEYS}
    try:
        return QuantConfig.model_validate(nested), []
    except ValidationError as error:
        found = problems_of(error, KEYS)
    # Layers are one level deeper in the model than in the file.
    return None, [
        replace(p, location=p.location[1:]) if p.location[0] == "layers" else p for p in found
    ]


def _without_joint_quant(document: dict[str, Any], source: str) -> dict[str, Any]:
    if "joint_quant" not in document:
        return document
    value = document["joint_quant"]
    if value is not False:
        text = (
            f"expected false, got {shown(value)}: layers are quantized one by one; remove the key"
        )
        fail(source, [Problem(("joint_quant",), text, not isinstance(value, bool))])
    logger.info("%s: joint_quant is false, as always here; the key has no effect", source)
    return {key: value for key, value in document.items() if key != "joint_quant"}
