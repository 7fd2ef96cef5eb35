"""The JSON configuration of quantization-aware training: read, check, generate, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..capability import BY_KIND
from ..graph import Layer, ModelFacts
from .document import ModelConfig, Precision, fill
from .json_file import read_object
from .names import quantizable_layers
from .problems import Problem, fail, shown
from .retrain_layer import KEYS, RetrainLayerConfig
from .retrain_limits import refusals

NO_PRUNING = "pruning is not part of quantization-aware training; remove it"
_PRUNE_KEYS = ("regular_prune_enable", "regular_prune_config")


class RetrainConfig(ModelConfig[RetrainLayerConfig]):
    """What the user wants for a model: the global keys, and an object for each layer."""

    layer_keys = KEYS
    written_if_set = ("fakequant_precision_mode", "shift_n")

    fakequant_precision_mode: Precision = "DEFAULT"
    shift_n: bool = False  # search the shift factor N after training

    @property
    def enabled(self) -> dict[str, RetrainLayerConfig]:
        """The layers to quantize and train, by name."""
        return {name: layer for name, layer in self.layers.items() if layer.retrain_enable}

    @classmethod
    def generate(cls, facts: ModelFacts) -> RetrainConfig:
        """The default configuration of a model: all layers that can be quantized, with INT8.

        Raises ValueError for a model without such a layer.

        >>> conv = Layer("conv", "Conv2d", None, in_channels=3, out_channels=8)
        >>> facts = ModelFacts(layers={"conv": conv}, modules={"conv": "Conv2d"})
        >>> RetrainConfig.generate(facts).layers["conv"].retrain_weight_config.algo
        'arq_retrain'
        """
        source = "create_quant_retrain_config"
        names = quantizable_layers(source, facts, cls.global_keys())
        document = {"version": 1, "batch_num": 1, **{name: {} for name in names}}
        return cls.from_document(document, facts, source)

    @classmethod
    def load(cls, path: str, facts: ModelFacts) -> RetrainConfig:
        """Reads a JSON file and checks it against the model; every default is filled in.

        Raises FileNotFoundError, IsADirectoryError or another OSError if it cannot be read;
        json.JSONDecodeError; TypeError for a value of a wrong type; ValueError for a wrong value, a
        key that appears twice or is unknown, version or batch_num missing, a layer that cannot be
        quantized, or not so, or no layer enabled. All mistakes of one kind are in one message.
        """
        return cls.from_document(read_object(path), facts, path)

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], facts: ModelFacts, source: str
    ) -> RetrainConfig:
        """Checks the object of a JSON file; `source` stands before each message.

        A layer that the document does not list is not quantized.
        """
        if problems := list(_pruning(document)):
            fail(source, problems)
        missing = [
            Problem((key,), "expected an integer, found none")
            for key in ("version", "batch_num")
            if key not in document
        ]
        config = cls.read(document, facts, source, with_defaults, missing)
        limits = [
            refusal.problem(name)
            for name, layer in config.enabled.items()
            for refusal in refusals(layer, facts.layers[name])
        ]
        if limits:
            fail(source, limits)
        if not config.enabled:
            text = "expected at least one layer with retrain_enable true, found none"
            raise ValueError(f"{source}: No layer retrain enabled: {text}")
        return config


def with_defaults(entry: Any, layer: Layer) -> Any:
    """A layer's JSON object with what depends on the layer filled in (pydantic does the rest)."""
    if not isinstance(entry, dict):
        return entry
    can = BY_KIND[layer.kind]
    return fill(entry, "retrain_weight_config", "channel_wise", can.channel_wise)


def _pruning(document: Mapping[str, Any]) -> Iterator[Problem]:
    for name, entry in document.items():
        for key in _PRUNE_KEYS if isinstance(entry, dict) else ():
            if key in entry:
                text = f"expected no such key, got {shown(entry[key])}: {NO_PRUNING}"
                yield Problem((name, key), text)
