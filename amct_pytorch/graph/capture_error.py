"""Says why a model could not be captured, with the line of the user's code."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any

import torch
from torch import nn

_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (torch.__file__, os.path.dirname(__file__))
)
_SOURCE_LINE = re.compile(r"^(?P<file>[^\s(].*?)\((?P<line>\d+)\): (?P<function>\S+)", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"\b(?:aten|prim|torchvision|quantized)::\w+")


def explain(
    error: Exception, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """The message for a failed export: the user's line, the cause, what to do."""
    line = _line_of_traceback(error) or _line_of_operator(error, model, args, kwargs)
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    cause = f"{type(root).__name__}: {_first_lines(root)}"
    where = f"\n  {line}" if line else ""
    return (
        f"the model {type(model).__name__} cannot be captured for ONNX:{where}\n  {cause}\n"
        "Change that line to operations that torch.onnx.export knows (try torch.onnx.export on "
        "the float model), pass a higher opset_version, or check that input_data fits the "
        "model's forward."
    )


def _first_lines(error: BaseException, limit: int = 6) -> str:
    lines = [line for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return "\n  ".join(lines[:limit]) or "(no message)"


def _line_of_traceback(error: BaseException | None) -> str | None:
    """The deepest frame outside torch and this package, over the chain of causes."""
    found = None
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__):
            if not _is_library(frame.filename):
                found = f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
        if found:
            return found
        error = error.__cause__ or error.__context__
    return None


def _line_of_operator(
    error: Exception, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """For an operator that has no ONNX form: where in the user's code a trace meets it."""
    operator = _OPERATOR.search(str(error))
    if operator is None:
        return None
    try:
        with torch.no_grad():
            trace = torch.jit.trace(  # type: ignore[no-untyped-call]
                model,
                None if kwargs else args,
                example_kwarg_inputs=kwargs or None,
                strict=False,
                check_trace=False,
            )
    except Exception:  # the explanation must not fail where the export already has
        return None
    for node in trace.inlined_graph.nodes():
        if node.kind() == operator.group():
            for match in _SOURCE_LINE.finditer(node.sourceRange()):
                if not _is_library(match["file"]):
                    return f"{match['file']}:{match['line']}, in {match['function']}"
    return None


def _is_library(filename: str) -> bool:
    return filename.startswith("<") or os.path.abspath(filename).startswith(_LIBRARIES)
