"""The names that the user gives to inputs and outputs: checked against the model and its graph."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .options import ExportOptions

logger = logging.getLogger(__name__)


def checked_names(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: ExportOptions
) -> ExportOptions:
    """The options without names and axes of inputs that there are not; a warning tells of them.

    An exporter would give the names to parameters, and fail at some of the axes. Raises ValueError
    for a name that a parameter or buffer has: the graph would have two values of one name.
    """
    inputs, outputs = options.input_names, options.output_names
    count = sum(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
    if inputs is not None and len(inputs) > count:
        text = "input_names: the model is called on %d tensors, so %s are not used"
        logger.warning(text, count, _listed(inputs[count:]))
        inputs = list(inputs[:count])
    tensors = model.state_dict(keep_vars=True)
    for argument, names in (("input_names", inputs), ("output_names", outputs)):
        for name in names or ():
            if name in tensors:
                raise ValueError(
                    f"{argument}: {name!r} is the name of a parameter or buffer of the model, "
                    "which has it in the graph; choose another"
                )
    axes = options.dynamic_axes
    if axes is not None and inputs is not None and outputs is not None:
        known = [*inputs, *outputs]
        _warn_of_unknown(axes, known)
        axes = {name: axes[name] for name in axes if name in known}
    return replace(options, input_names=inputs, dynamic_axes=axes)


def warn_of_unknown_axes(graph: ir.Graph, options: ExportOptions) -> None:
    """Axes of what is no input or output of the graph, which an exporter passes over."""
    known = [str(value.name) for value in (*graph.inputs, *graph.outputs)]
    _warn_of_unknown(options.dynamic_axes or {}, known)


def _warn_of_unknown(axes: Collection[str], known: Collection[str]) -> None:
    unknown = [name for name in axes if name not in known]
    if unknown:
        text = "dynamic_axes: no input or output of the graph is named %s; there are %s"
        logger.warning(text, _listed(unknown), _listed(known))


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))


def free_argument_names(names: Sequence[str], model: nn.Module) -> list[str]:
    """Names of arguments for a graph: with a number where a parameter or buffer has the name."""
    tensors = model.state_dict(keep_vars=True)
    free = []
    for name in names:
        unique, number = name, 0
        while unique in tensors or (number and unique in names):
            number += 1
            unique = f"{name}_{number}"
        free.append(unique)
    return free
