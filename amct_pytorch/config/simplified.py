"""The simplified configuration: a few sections that stand for the object of every layer.

The section that applies to a layer is the override that names it, else the override of its type,
else `common_config`; it applies as a whole, nothing of the others is mixed in but `asymmetric`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..graph import ModelFacts
from .layer import LayerConfig
from .names import check_not_all, quantizable_layers
from .problems import Location, fail_at_first
from .ptq import QuantConfig
from .ptq_limits import refusals
from .ptq_section import CalibrationSection
from .section import Sections, Skips, override_problems
from .simplified_file import read_message

_GLOBALS = ("batch_num", "activation_offset", "do_fusion")


def load_simplified(path: str, facts: ModelFacts) -> QuantConfig:
    """The configuration that the file `path`, read by `read_message`, stands for.

    What `common_config` asks for and a layer cannot do is left out for that layer, with a warning.
    In an override it is an error, but for what depends on the shape of a layer: a bias where a type
    is overridden, packing of 4-bit weights everywhere.

    Raises what `read_message` does for a file that does not parse; ValueError for a wrong value, a
    name that is unknown or repeated, and what a layer cannot do.

    >>> import tempfile
    >>> from amct_pytorch.graph import Layer
    >>> facts = ModelFacts({"conv": Layer("conv", "Conv2d", None)}, {"conv": "Conv2d"})
    >>> with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
    ...     _ = file.write("batch_num: 4 common_config { arq_quantize { quant_bits: 6 } }")
    ...     file.flush()
    ...     config = load_simplified(file.name, facts)
    >>> config.batch_num, config.layers["conv"].weight_quant_params.num_bits
    (4, 6)
    """
    message, lines = read_message(path, "calibration_config_pytorch", "AMCTPytorchProto.AMCTConfig")
    sections = _sections(message)
    skips = Skips(message, ("skip_layers",), ("skip_layer_types",))
    fail_at_first(
        path,
        (*override_problems(message, facts), *skips.problems(facts), *skips.repeated()),
        sections.value_problems(),
        sections.limit_problems(facts),
        lines=lines,
    )
    document: dict[str, Any] = {key: getattr(message, key) for key in _GLOBALS}
    document["skip_fusion_layers"] = list(message.skip_fusion_layers)
    if message.HasField("fakequant_precision_mode"):
        document["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
    names = quantizable_layers(path, facts, QuantConfig.global_keys())
    skipped = skips.names(facts)
    check_not_all(path, names, skipped)
    configs = sections.configs(path, [facts.layers[name] for name in names], skipped)
    for name, config in configs.items():
        enable = name not in skipped
        document[name] = {**config.model_dump(exclude_none=True), "quant_enable": enable}
    return QuantConfig.from_document(document, facts, path)


def _sections(message: Any) -> Sections[LayerConfig]:
    offset = message.activation_offset
    common = CalibrationSection(("common_config",), message.common_config, offset)

    def override(location: Location, item: Any) -> CalibrationSection:
        section = CalibrationSection(
            (*location, "calibration_config"), item.calibration_config, offset
        )
        # Nothing of `common_config` holds for it but this, where both have one algorithm.
        same = section.activation_algorithm == common.activation_algorithm
        return replace(section, default_asymmetric=common.asymmetric) if same else section

    return Sections.read(message, common, override, refusals)
