"""The simplified configuration of QAT: a few sections that stand for the object of every layer.

The section that applies to a layer is the override that names it, else the override of its type,
else the global one. It applies as a whole: what an override does not say has the default, whatever
the global section says. A layer with an override is trained even if a list says to skip it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from ..graph import ModelFacts
from .names import quantizable_layers
from .problems import Location, Problem, fail_at_first
from .proto_text import if_set
from .retrain import NO_PRUNING, RetrainConfig
from .retrain_limits import refusals
from .retrain_section import RetrainSection
from .section import Sections, Skips, override_problems
from .simplified_file import read_message

logger = logging.getLogger(__name__)

_GLOBALS = ("batch_num", "shift_n")
_PRUNE_FIELDS = ("prune_config", "regular_prune_skip_layers", "regular_prune_skip_types")


def load_simplified_retrain(path: str, facts: ModelFacts) -> RetrainConfig:
    """The configuration that the file `path`, read by `read_message`, stands for.

    What the global section asks for and a layer cannot do is left out for that layer, with a
    warning. In an override it is an error, but for what depends on the shape of a layer: a bias
    where a type is overridden, packing of 4-bit weights everywhere.

    Raises what `read_message` does for a file that does not parse; ValueError for a wrong value, a
    name that is unknown or overridden twice, what a layer cannot do, pruning, or no layer enabled.

    >>> import tempfile
    >>> from amct_pytorch.graph import Layer
    >>> facts = ModelFacts({"conv": Layer("conv", "Conv2d", None)}, {"conv": "Conv2d"})
    >>> with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
    ...     _ = file.write("retrain_weight_quant_config { ulq_retrain {} }")
    ...     file.flush()
    ...     config = load_simplified_retrain(file.name, facts)
    >>> config.layers["conv"].retrain_weight_config.algo
    'ulq_retrain'
    """
    message, lines = read_message(
        path, "retrain_config_pytorch", "AMCTPytorchProto.AMCTRetrainConfig"
    )
    sections = Sections.read(message, RetrainSection((), message), _override, refusals)
    skips = Skips(
        message, ("skip_layers", "quant_skip_layers"), ("skip_layer_types", "quant_skip_types")
    )
    fail_at_first(
        path,
        _pruning(message),
        (*override_problems(message, facts), *skips.problems(facts)),
        sections.value_problems(),
        sections.limit_problems(facts),
        lines=lines,
    )
    for problem in skips.repeated():
        logger.warning("%s: %s: %s", path, problem.path, problem.text)
    document: dict[str, Any] = {"version": 1, **{key: getattr(message, key) for key in _GLOBALS}}
    if message.HasField("fakequant_precision_mode"):
        document["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
    layers = [
        facts.layers[name] for name in quantizable_layers(path, facts, RetrainConfig.global_keys())
    ]
    skipped = {
        name for name in skips.names(facts) if sections.of(facts.layers[name]) is sections.common
    }
    for name, config in sections.configs(path, layers, skipped).items():
        enable = name not in skipped
        document[name] = {**config.model_dump(exclude_none=True), "retrain_enable": enable}
    return RetrainConfig.from_document(document, facts, path)


def _override(location: Location, item: Any) -> RetrainSection:
    return RetrainSection(location, item, **if_set(item, "shift_n"))


def _pruning(message: Any) -> Iterator[Problem]:
    places: list[tuple[Location, Any]] = [((), message)]
    for field in ("override_layer_types", "override_layer_configs"):
        places += [((field, index), item) for index, item in enumerate(getattr(message, field))]
    for location, place in places:
        for field, _ in place.ListFields():
            if field.name in _PRUNE_FIELDS:
                yield Problem((*location, field.name), f"expected no such field: {NO_PRUNING}")
