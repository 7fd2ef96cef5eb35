"""The simplified configuration of quantization-aware training (protobuf text).

The section that applies to a layer is the override that names it, else the override of its type,
else the global one; it applies as a whole, and what it leaves open has the default. A layer that is
overridden is trained even if it is skipped.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..capability import BY_KIND
from ..float32 import shortest
from ..graph import Layer, ModelFacts
from .names import quantizable_layers, why_not_layer, why_not_type, why_repeated
from .problems import Problem, fail, shown
from .proto_text import parse
from .retrain import (
    GLOBAL_KEYS,
    NONE_ENABLED,
    RetrainConfig,
    RetrainLayerConfig,
    layer_problems,
    with_defaults,
)
from .retrain_layer import DATA, WEIGHT, dumped
from .retrain_limits import RetrainRefusal, refused_pair, retrain_refusals

logger = logging.getLogger(__name__)

_DATA_FIELD, _WEIGHT_FIELD = "retrain_data_quant_config", "retrain_weight_quant_config"
_PRUNING = ("prune_config", "regular_prune_skip_layers", "regular_prune_skip_types")
_TYPES = ("INT4", "INT8", "INT16")  # by the numbers of the enum DataType


def load_simplified_retrain(path: str, facts: ModelFacts) -> RetrainConfig:
    """The configuration that the protobuf text file `path` stands for.

    What the global section asks for and a layer cannot do is left out for that layer, with a
    warning; in an override it is an error, but for the packing of 4-bit weights.

    Raises FileNotFoundError or another OSError if the file cannot be read; ParseError of
    google.protobuf.text_format, with file and line, for text that does not parse; ValueError for a
    wrong value, a name that is unknown or overridden twice, what a layer cannot do, and pruning.

    >>> import tempfile
    >>> facts = ModelFacts({"conv": Layer("conv", "Conv2d", None)}, {"conv": "Conv2d"})
    >>> with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
    ...     _ = file.write("batch_num: 4")
    ...     file.flush()
    ...     load_simplified_retrain(file.name, facts).batch_num
    4
    """
    message = parse(path, "retrain_config_pytorch", "AMCTRetrainConfig")
    # Each check may rely on those before it.
    for check in (_prune_problems, _name_problems, _value_problems, _limit_problems):
        if problems := list(check(message, facts)):
            fail(path, problems)
    _warn_of_repeated(path, message)
    document: dict[str, Any] = {
        "version": 1,
        "batch_num": message.batch_num,
        "shift_n": message.shift_n,
    }
    if message.HasField("fakequant_precision_mode"):
        document["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
    return RetrainConfig.from_document({**document, **_layers(path, message, facts)}, facts, path)


@dataclass(frozen=True)
class _Section:
    """A message with the two configurations of a layer, and where it is in the file."""

    location: tuple[str | int, ...]
    message: Any
    override: bool

    def config(self, layer: Layer) -> RetrainLayerConfig:
        return RetrainLayerConfig.model_validate(with_defaults(self.entry(), layer))

    def entry(self) -> dict[str, Any]:
        """The JSON object, without what the section leaves open."""
        entry: dict[str, Any] = {"retrain_enable": True, DATA: {}, WEIGHT: {}}
        if self.override and self.message.HasField("shift_n"):
            entry["shift_n"] = self.message.shift_n
        data = self.message.retrain_data_quant_config
        if data.WhichOneof("data_retrain_algo"):
            ulq = data.ulq_quantize
            entry[DATA] = {"algo": "ulq_quantize", "dst_type": _TYPES[ulq.dst_type]}
            if ulq.HasField("clip_max_min"):
                clips = ulq.clip_max_min.clip_max, ulq.clip_max_min.clip_min
                entry[DATA] |= dict(zip(("clip_max", "clip_min"), shortest(clips), strict=True))
            if ulq.HasField("fixed_min"):
                entry[DATA]["fixed_min"] = ulq.fixed_min
        weight = self.message.retrain_weight_quant_config
        if algorithm := weight.WhichOneof("weights_retrain_algo"):
            chosen = getattr(weight, algorithm)
            entry[WEIGHT] = {"algo": algorithm, "dst_type": _TYPES[chosen.dst_type]}
            if chosen.HasField("channel_wise"):
                entry[WEIGHT]["channel_wise"] = chosen.channel_wise
        return entry

    def problem(self, refusal: RetrainRefusal) -> Problem:
        """`refusal` as a mistake in this section."""
        return self.at(refusal.problem())

    def at(self, problem: Problem) -> Problem:
        """`problem` of a layer's JSON object, at the field that it comes from."""
        part, *keys = problem.location
        fields: tuple[str | int, ...] = ()
        if part == DATA:
            clip = any(key in ("clip_max", "clip_min") for key in keys)
            fields = (_DATA_FIELD, "ulq_quantize", *(["clip_max_min"] if clip else []), *keys)
        elif part == WEIGHT:
            algorithm = self.message.retrain_weight_quant_config.WhichOneof("weights_retrain_algo")
            fields = (_WEIGHT_FIELD, str(algorithm), *keys)
        return Problem((*self.location, *fields), problem.text, problem.wrong_type)


def _sections(message: Any) -> Iterator[_Section]:
    yield _Section((), message, False)
    for field in ("override_layer_types", "override_layer_configs"):
        for index, item in enumerate(getattr(message, field)):
            yield _Section((field, index), item, True)


def _section_of(layer: Layer, message: Any) -> _Section:
    """The section that applies to `layer`."""
    for field, key, wanted in (
        ("override_layer_configs", "layer_name", layer.name),
        ("override_layer_types", "layer_type", layer.kind),
    ):
        for index, item in enumerate(getattr(message, field)):
            if getattr(item, key) == wanted:
                return _Section((field, index), item, True)
    return _Section((), message, False)


def _layers(path: str, message: Any, facts: ModelFacts) -> dict[str, Any]:
    """The JSON objects of the layers, without what a layer cannot do."""
    skipped_names = {*message.skip_layers, *message.quant_skip_layers}
    skipped_types = {*message.skip_layer_types, *message.quant_skip_types}
    entries: dict[str, Any] = {}
    left_out: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in quantizable_layers(path, facts, (), GLOBAL_KEYS):
        layer = facts.layers[name]
        section = _section_of(layer, message)
        skipped = name in skipped_names or layer.kind in skipped_types
        enabled = section.override or not skipped
        config = section.config(layer)
        while refusal := next(retrain_refusals(config, layer), None):
            config = refusal.without
            if enabled:
                left_out[section.problem(refusal).path, refusal.reason].append(name)
        entries[name] = {**dumped(config), "retrain_enable": enabled}
    if not any(entry["retrain_enable"] for entry in entries.values()):
        raise ValueError(f"{path}: {NONE_ENABLED}; all are skipped")
    for (place, reason), names in left_out.items():
        logger.warning("%s: %s: left out for %s: %s", path, place, ", ".join(names), reason)
    return entries


def _prune_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    text = "expected no pruning: it is not part of quantization-aware training; remove the field"
    for section in _sections(message):
        for field, _ in section.message.ListFields():
            if field.name in _PRUNING:
                yield Problem((*section.location, field.name), text)


def _name_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    """Names that are unknown, and overrides of one name."""
    for field in ("skip_layer_types", "quant_skip_types"):
        for index, kind in enumerate(getattr(message, field)):
            if text := why_not_type(kind, BY_KIND):
                yield Problem((field, index), text)
    for field in ("skip_layers", "quant_skip_layers"):
        for index, name in enumerate(getattr(message, field)):
            if text := why_not_layer(name, facts, BY_KIND):
                yield Problem((field, index), text)
    kinds = [override.layer_type for override in message.override_layer_types]
    for index, kind in enumerate(kinds):
        if text := why_not_type(kind, BY_KIND) or why_repeated(kinds, index):
            yield Problem(("override_layer_types", index, "layer_type"), text)
    names = [override.layer_name for override in message.override_layer_configs]
    for index, name in enumerate(names):
        text = why_not_layer(name, facts, BY_KIND) or why_repeated(names, index)
        if not text and (reason := facts.layers[name].reason):
            text = f"{shown(name)} cannot be quantized: {reason}"
        if text:
            yield Problem(("override_layer_configs", index, "layer_name"), text)


def _value_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    """Values that are wrong for any layer."""
    anything = Layer("", "Conv2d", None)
    for section in _sections(message):
        found = layer_problems(with_defaults(section.entry(), anything))
        if found:
            yield from map(section.at, found)
        elif refusal := refused_pair(section.config(anything)):
            yield section.problem(refusal)


def _limit_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    """What an override asks of a type or a layer that cannot do it."""
    for section in _sections(message):
        if not section.override:
            continue
        by_name = section.location[0] == "override_layer_configs"
        layer = (
            facts.layers[section.message.layer_name]
            if by_name
            else Layer("", section.message.layer_type, None, has_bias=True, in_channels=2)
        )
        for refusal in retrain_refusals(section.config(layer), layer):
            if refusal.keys[-1] != "dst_type" or refusal.found != "INT4":  # those are left out
                yield section.problem(refusal)


def _warn_of_repeated(path: str, message: Any) -> None:
    for field in ("skip_layers", "skip_layer_types", "quant_skip_layers", "quant_skip_types"):
        names: Sequence[str] = list(getattr(message, field))
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            logger.warning("%s: %s: %s is there more than once", path, field, ", ".join(repeated))
