"""The JSON configuration of KV-cache calibration: read, check, generate, write."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from ..graph import ModelFacts
from ..suggest import did_you_mean
from .document import ModelConfig
from .json_file import read_object
from .kv_layer import KEYS, KVLayerConfig
from .names import check_no_global_key, why_not_layer, why_repeated
from .problems import shown

QUANT_LAYERS = "kv_cache_quant_layers"  # the one key of the argument quant_layers


class KVCacheConfig(ModelConfig[KVLayerConfig]):
    """Which layers fill a key or value cache, and how each is calibrated."""

    layer_keys = KEYS
    written_if_set: ClassVar[Collection[str]] = {"version"}  # this format has none

    activation_offset: bool = True

    @classmethod
    def generate(cls, facts: ModelFacts, quant_layers: object) -> KVCacheConfig:
        """The default configuration of `{"kv_cache_quant_layers": [names]}`.

        Raises TypeError for another key or no dictionary, RuntimeError where no layer is named,
        ValueError for a list that is none, and for a name that is unknown, repeated, of no Linear
        or a global key.

        >>> from amct_pytorch.graph import Layer
        >>> facts = ModelFacts({"k": Layer("k", "Linear", None)}, {"k": "Linear"}, {}, ("Linear",))
        >>> KVCacheConfig.generate(facts, {"kv_cache_quant_layers": ["k"]}).layers["k"].per_channel
        False
        """
        names = _checked_names(quant_layers, facts)
        check_no_global_key("create_quant_cali_config", names, cls.global_keys())
        document: dict[str, Any] = {name: {} for name in facts.layers if name in names}
        return cls.from_document(document, facts, "create_quant_cali_config")

    @classmethod
    def load(cls, path: str, facts: ModelFacts) -> KVCacheConfig:
        """Reads a JSON file and checks it against the model; every default is filled in.

        Raises what `QuantConfig.load` raises; RuntimeError if it names no layer.
        """
        return cls.from_document(read_object(path), facts, path)

    @classmethod
    def from_document(
        cls, document: dict[str, Any], facts: ModelFacts, source: str
    ) -> KVCacheConfig:
        """Checks the object of a JSON file; `source` stands before each message."""
        config = cls.read(document, facts, source, lambda entry, layer: entry)
        if not config.layers:
            raise RuntimeError(f"{source}: expected at least one layer to calibrate, found none")
        return config

    def is_asymmetric(self, layer: str) -> bool:
        """Whether `layer` is calibrated with an offset: as its object says, else for all."""
        own = self.layers[layer].kv_data_quant_config.asymmetric
        return self.activation_offset if own is None else own


def _checked_names(quant_layers: object, facts: ModelFacts) -> list[str]:
    expected = f'expected {{"{QUANT_LAYERS}": [names of Linear layers]}}'
    if not isinstance(quant_layers, dict):
        text = "; or give a config_defination" if quant_layers is None else ""
        found = "None" if quant_layers is None else type(quant_layers).__name__
        raise TypeError(f"quant_layers: {expected}, got {found}{text}")
    for key in quant_layers:
        if key != QUANT_LAYERS:
            hint = did_you_mean(str(key), [QUANT_LAYERS])
            raise TypeError(f"quant_layers: {expected}, got the key {shown(key)}{hint}")
    names = quant_layers.get(QUANT_LAYERS, [])
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"quant_layers[{QUANT_LAYERS!r}]: expected a list of str, got {names!r}")
    if not names:
        raise RuntimeError(f"quant_layers: {expected}, got no name: there is nothing to calibrate")
    repeated = why_repeated(names)
    for index, name in enumerate(names):
        if reason := why_not_layer(name, facts) or repeated.get(index):
            raise ValueError(f"quant_layers[{QUANT_LAYERS!r}][{index}]: {reason}")
    return list(names)
