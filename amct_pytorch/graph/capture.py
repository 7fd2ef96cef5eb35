"""The capture: one float ONNX export of a model, with the nodes that each module made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from .bfloat16 import widen
from .capture_error import explain
from .exporters import export, is_dynamo, quiet
from .options import ExportOptions, split_input_data
from .tidy import fold_own_padding, tidy
from .value_names import checked_names, warn_of_unknown_axes
from .watch import Watch


@dataclass(frozen=True)
class Capture:
    """An exported model and, per path of a module of interest that ran, the nodes it made."""

    model: ir.Model
    nodes: dict[str, list[ir.Node]]


def capture(
    model: nn.Module,
    input_data: object,
    options: ExportOptions,
    of_interest: Callable[[nn.Module], bool],
) -> Capture:
    """Exports `model` called on `input_data`; RuntimeError with the user's own line if it fails."""
    args, kwargs = split_input_data(input_data)
    options = checked_names(model, args, kwargs, options)
    watch = Watch.of(model, of_interest)
    try:
        with watch.hooks():
            exported = export(model, args, kwargs, options)
    except Exception as error:
        raise RuntimeError(explain(error, model, args, kwargs)) from error
    by = watch.nodes_by_metadata if is_dynamo(options) else watch.nodes_by_scope
    nodes = by(exported)
    warn_of_unknown_axes(exported.graph, options)
    widen(exported)
    with quiet():
        tidy(exported)
    alive = set(exported.graph)
    nodes = {name: [node for node in many if node in alive] for name, many in nodes.items()}
    fold_own_padding(nodes)
    return Capture(exported, nodes)
