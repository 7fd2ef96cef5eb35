"""The simplified configuration (protobuf text): a few sections that stand for a whole JSON file.

The section that applies to a layer is the override that names it, else the override of its type,
else `common_config`; it applies as a whole, nothing of the others is mixed in but `asymmetric`.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format

from ..capability import BY_KIND
from ..graph import Layer, ModelFacts
from ..suggest import did_you_mean
from .limits import refusals
from .names import check_not_all, quantizable_layers, why_not_layer, why_repeated
from .problems import Problem, fail, shown
from .ptq import QuantConfig
from .schema import message_class
from .section import Section

logger = logging.getLogger(__name__)

_GLOBALS = ("batch_num", "activation_offset", "do_fusion")


def load_simplified(path: str, facts: ModelFacts) -> QuantConfig:
    """The configuration that the protobuf text file `path` stands for.

    What `common_config` asks for and a layer cannot do is left out for that layer, with a warning.
    In an override it is an error, but for what depends on the shape of a layer: a bias where a type
    is overridden, packing of 4-bit weights everywhere.

    Raises FileNotFoundError or another OSError if the file cannot be read; ParseError of
    google.protobuf.text_format, with file and line, for text that does not parse, an unknown field,
    a field twice or a required one missing; ValueError for a wrong value, a name that is unknown or
    repeated, and what a layer cannot do.

    >>> import tempfile
    >>> facts = ModelFacts({"conv": Layer("conv", "Conv2d", None)}, {"conv": "Conv2d"})
    >>> with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
    ...     _ = file.write("batch_num: 4 common_config { arq_quantize { quant_bits: 6 } }")
    ...     file.flush()
    ...     config = load_simplified(file.name, facts)
    >>> config.batch_num, config.layers["conv"].weight_quant_params.num_bits
    (4, 6)
    """
    message = _parse(path)
    sections = _Sections.read(message)
    # Each check may rely on those before it.
    for check in (
        _name_problems(message, facts),
        _value_problems(sections),
        _limit_problems(sections, facts),
    ):
        if problems := list(check):
            fail(path, problems)
    document: dict[str, Any] = {key: getattr(message, key) for key in _GLOBALS}
    document["skip_fusion_layers"] = list(message.skip_fusion_layers)
    if message.HasField("fakequant_precision_mode"):
        document["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
    document.update(_layer_entries(path, message, sections, facts))
    return QuantConfig.from_document(document, facts, path)


@dataclass(frozen=True)
class _Sections:
    common: Section
    by_type: dict[str, Section]
    by_layer: dict[str, Section]

    @classmethod
    def read(cls, message: Any) -> _Sections:
        def overrides(field: str, key: str) -> dict[str, Section]:
            return {
                getattr(item, key): Section(
                    (field, index, "calibration_config"), item.calibration_config
                )
                for index, item in enumerate(getattr(message, field))
            }

        return cls(
            Section(("common_config",), message.common_config),
            overrides("override_layer_types", "layer_type"),
            overrides("override_layer_configs", "layer_name"),
        )

    def of(self, layer: Layer) -> Section:
        """The section that applies to `layer`."""
        return self.by_layer.get(layer.name) or self.by_type.get(layer.kind) or self.common


def _layer_entries(
    path: str, message: Any, sections: _Sections, facts: ModelFacts
) -> dict[str, Any]:
    """The JSON objects of the layers, without what a layer cannot do."""
    skipped = [
        name
        for name, layer in facts.layers.items()
        if name in message.skip_layers or layer.kind in message.skip_layer_types
    ]
    names = quantizable_layers(path, facts, QuantConfig.global_keys())
    check_not_all(path, names, skipped)
    entries = {}
    left_out: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        layer = facts.layers[name]
        section = sections.of(layer)
        config = section.config(layer, _default_asymmetric(section, sections.common, message))
        while refusal := next(refusals(config, layer), None):
            config = refusal.without
            if name not in skipped:
                left_out[section.problem(refusal).path, refusal.reason].append(name)
        entries[name] = {
            **config.model_dump(exclude_none=True),
            "quant_enable": name not in skipped,
        }
    for (place, reason), names in left_out.items():
        logger.warning("%s: %s: left out for %s: %s", path, place, ", ".join(names), reason)
    return entries


def _default_asymmetric(section: Section, common: Section, message: Any) -> bool:
    """What holds where a section does not say: `common_config` if it has the same algorithm."""
    same = section.activation_algorithm == common.activation_algorithm
    if same and common.asymmetric is not None:
        return common.asymmetric
    return bool(message.activation_offset)


def _value_problems(sections: _Sections) -> Iterator[Problem]:
    """Values that are wrong for any layer."""
    for section in (sections.common, *sections.by_type.values(), *sections.by_layer.values()):
        yield from section.problems()


def _limit_problems(sections: _Sections, facts: ModelFacts) -> Iterator[Problem]:
    """What an override asks of a type or a layer that cannot do it."""
    for kind, section in sections.by_type.items():
        capable = Layer("", kind, None, has_bias=True, in_channels=2)
        config = section.config(capable, asymmetric=False)
        yield from (section.problem(refusal) for refusal in refusals(config, capable))
    for name, section in sections.by_layer.items():
        config = section.config(facts.layers[name], asymmetric=False)
        for refusal in refusals(config, facts.layers[name]):
            if refusal.keys[-1] != "num_bits" or refusal.found != 4:  # those are left out
                yield section.problem(refusal)


def _name_problems(message: Any, facts: ModelFacts) -> Iterator[Problem]:
    """Names of layers and types that are unknown or repeated."""
    overridden_types = [override.layer_type for override in message.override_layer_types]
    overridden_layers = [override.layer_name for override in message.override_layer_configs]
    for types, location in (
        (message.skip_layer_types, lambda i: ("skip_layer_types", i)),
        (overridden_types, lambda i: ("override_layer_types", i, "layer_type")),
    ):
        for index, kind in enumerate(types):
            if text := _why_not_type(kind) or why_repeated(types, index):
                yield Problem(location(index), text)
    for index, name in enumerate(message.skip_layers):
        if text := why_not_layer(name, facts) or why_repeated(message.skip_layers, index):
            yield Problem(("skip_layers", index), text)
    for index, name in enumerate(overridden_layers):
        text = why_not_layer(name, facts) or why_repeated(overridden_layers, index)
        if not text and (reason := facts.layers[name].reason):
            text = f"{shown(name)} cannot be quantized: {reason}"
        if text:
            yield Problem(("override_layer_configs", index, "layer_name"), text)


def _why_not_type(kind: str) -> str:
    if kind in BY_KIND:
        return ""
    return f"expected one of {', '.join(BY_KIND)}, got {shown(kind)}{did_you_mean(kind, BY_KIND)}"


def _parse(path: str) -> Any:
    with open(path, "rb") as file:
        content = file.read()
    message = message_class("calibration_config_pytorch", "AMCTPytorchProto.AMCTConfig")()
    try:
        text_format.Parse(content.decode("utf-8-sig"), message)
    except UnicodeDecodeError as error:
        raise text_format.ParseError(f"{path}: expected UTF-8 text ({error})") from None
    except text_format.ParseError as error:
        line, reason = error.GetLine() or 1, str(error).partition(" : ")[2] or str(error)
        hint = _closest_field(reason, message.DESCRIPTOR.file)
        raise text_format.ParseError(f"{path}:{line}: {reason.rstrip('.')}{hint}") from None
    if missing := message.FindInitializationErrors():
        raise text_format.ParseError(f"{path}: {missing[0]}: required, found none")
    return message


def _closest_field(reason: str, file: Any) -> str:
    """The field that an unknown one may stand for; protobuf's message names it."""
    unknown = re.search(r'type "\w+\.(\w+)" has no field named "(\w+)"', reason)
    if not unknown:
        return ""
    return did_you_mean(unknown[2], file.message_types_by_name[unknown[1]].fields_by_name)
