"""The simplified configuration of KV-cache calibration: a list of layers, and overrides.

An override applies to its layer as a whole, whether or not the list names the layer too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..graph import ModelFacts
from .kv_cache import KVCacheConfig
from .kv_section import KVSection
from .names import check_no_global_key, why_not_layer, why_repeated
from .problems import Problem, fail_at_first
from .simplified_file import read_message

_COMMON, _OVERRIDES = "kv_cache_quant_config", "override_layers_configs"


def load_simplified_kv(path: str, facts: ModelFacts) -> KVCacheConfig:
    """The configuration that the file `path`, read by `read_message`, stands for.

    Raises what `read_message` does for a file that does not parse; ValueError for a wrong value and
    a name that is unknown, repeated, of no Linear or a global key; RuntimeError if no layer is
    named.

    >>> import tempfile
    >>> from amct_pytorch.graph import Layer
    >>> facts = ModelFacts({"k": Layer("k", "Linear", None)}, {"k": "Linear"}, {}, ("Linear",))
    >>> with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
    ...     _ = file.write('batch_num: 4 kv_cache_quant_config { quant_layers: "k" }')
    ...     file.flush()
    ...     config = load_simplified_kv(file.name, facts)
    >>> config.batch_num, list(config.layers)
    (4, ['k'])
    """
    message, lines = read_message(
        path, "quant_calibration_config_pytorch", "AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig"
    )
    common = message.kv_cache_quant_config
    section = KVSection((_COMMON, "calibration_config"), common.calibration_config)
    sections = dict.fromkeys(common.quant_layers, section)
    overrides = {}
    for index, item in enumerate(message.override_layers_configs):
        location = (_OVERRIDES, index, "kv_data_quant_config")
        overrides[item.layer_name] = KVSection(location, item.kv_data_quant_config)
    sections.update(overrides)
    fail_at_first(
        path,
        _name_problems(message, facts),
        (problem for s in (section, *overrides.values()) for problem in s.problems()),
        lines=lines,
    )
    check_no_global_key(path, sections, KVCacheConfig.global_keys())
    document: dict[str, Any] = {
        "batch_num": message.batch_num,
        "activation_offset": message.activation_offset,
    }
    for name, layer in facts.layers.items():
        if name in sections:
            document[name] = sections[name].config(layer).model_dump(exclude_none=True)
    return KVCacheConfig.from_document(document, facts, path)


def _name_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    listed = list(message.kv_cache_quant_config.quant_layers)
    overridden = [item.layer_name for item in message.override_layers_configs]
    for names, place in (
        (listed, lambda index: (_COMMON, "quant_layers", index)),
        (overridden, lambda index: (_OVERRIDES, index, "layer_name")),
    ):
        repeated = why_repeated(names)
        for index, name in enumerate(names):
            if text := why_not_layer(name, facts) or repeated.get(index):
                yield Problem(place(index), text)
