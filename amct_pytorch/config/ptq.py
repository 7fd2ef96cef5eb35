"""The JSON configuration of post-training quantization: read, check, generate, write."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..capability import BY_KIND
from ..graph import Layer, ModelFacts
from .document import ModelConfig, Precision, fill
from .json_file import read_object
from .layer import KEYS, LayerConfig
from .layer import ActivationConfig as ActivationConfig
from .layer import WeightConfig as WeightConfig
from .names import check_not_all, checked_skips, fusion_problems, quantizable_layers
from .problems import Problem, fail, shown
from .ptq_limits import refusals

logger = logging.getLogger(__name__)


class QuantConfig(ModelConfig[LayerConfig]):
    """What the user wants for a model: the global keys, and an object for each layer."""

    layer_keys = KEYS

    activation_offset: bool = True
    """Whether activations have an offset where a layer does not say so with asymmetric."""
    do_fusion: bool = True
    """Whether a BatchNorm is folded into the convolution before it."""
    fakequant_precision_mode: Precision = "DEFAULT"
    """FORCE_FP16_QUANT: scales of activations are recorded in half precision."""
    skip_fusion_layers: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v),
        Field(json_schema_extra={"uniqueItems": True}),
    ] = ()
    """Convolutions that no BatchNorm is folded into."""

    @classmethod
    def global_keys(cls) -> tuple[str, ...]:
        """The keys of the JSON object that name no layer."""
        return (*super().global_keys(), "joint_quant")  # read, never written

    def names_in_file(self) -> list[str]:
        """The layers in the order they are written."""
        return sorted(self.layers)

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
        names = quantizable_layers("create_quant_config", facts, cls.global_keys())
        check_not_all("create_quant_config", names, skipped)
        for name in names:
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
        default = document.get("activation_offset", True) is not False
        config = cls.read(
            document, facts, source, lambda entry, layer: with_defaults(entry, layer, default)
        )
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


def with_defaults(entry: Any, layer: Layer, asymmetric: bool) -> Any:
    """A layer's JSON object with what depends on the layer filled in (pydantic does the rest)."""
    if not isinstance(entry, dict):
        return entry
    can = BY_KIND[layer.kind]
    entry = {"quant_enable": False, **entry}
    offset = asymmetric and can.asymmetric
    entry = fill(entry, "activation_quant_params", "asymmetric", offset)
    return fill(entry, "weight_quant_params", "channel_wise", can.channel_wise)


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
