"""Whether an exported model computes in ONNX Runtime what a torch model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..graph.lazy_array import LazyArray
from ..graph.options import split_input_data

# Of the largest output. Behind a float layer the order of additions can flip a code, and a flipped
# code others; 0.6 % was seen on a deep model that was right.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Comparison:
    """The outcome: the largest difference of any output, or why there is none."""

    checked: bool
    note: str
    largest_difference: float | None = None
    largest_output: float | None = None  # finite magnitude, to see the difference beside

    @property
    def differs(self) -> bool:
        """Whether the difference is more than the order of float additions explains."""
        if self.largest_difference is None or self.largest_output is None:
            return False
        return not self.largest_difference <= TOLERANCE * self.largest_output


def compare_to_onnx(model: nn.Module, input_data: Any, onnx_file: str) -> Comparison:
    """Runs both on `input_data`; ONNX Runtime without its graph optimizations."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return Comparison(False, "onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            onnx_file, options, providers=["CPUExecutionProvider"]
        )
        feeds = _feeds([i.name for i in session.get_inputs()], input_data)
        outputs = session.run(None, feeds)
        shapes = [list(output.shape) for output in outputs]
    except Exception as error:  # of many kinds, none of which may cost the user the model
        return Comparison(False, f"ONNX Runtime: {type(error).__name__}: {error}")
    try:
        expected = _outputs(model, input_data)
    except Exception as error:  # the model is the user's: as above
        return Comparison(False, f"torch simulation: {type(error).__name__}: {error}")
    if shapes != [list(output.shape) for output in expected]:
        return Comparison(False, f"outputs differ in number or shape: {shapes} in ONNX Runtime")
    pairs = [
        (e.astype(np.float64), o.astype(np.float64)) for e, o in zip(expected, outputs, strict=True)
    ]
    difference = max((_difference(e, o) for e, o in pairs), default=0.0)
    note = "torch simulation against ONNX Runtime on input_data"
    return Comparison(True, note, difference, max((_largest(e) for e, _ in pairs), default=0.0))


def _feeds(names: list[str], input_data: Any) -> dict[str, Any]:
    args, kwargs = split_input_data(input_data)
    named = {name: kwargs[name] for name in names if name in kwargs}
    rest = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    unnamed = [value for key, value in kwargs.items() if key not in named]
    rest += [leaf for leaf in tree_leaves(unnamed) if isinstance(leaf, Tensor)]
    open_names = [name for name in names if name not in named]
    if len(open_names) != len(rest):
        raise ValueError(
            f"the graph has inputs {names}, input_data {len(rest) + len(named)} tensors"
        )
    feeds = {**named, **dict(zip(open_names, rest, strict=True))}
    return {name: _array(tensor) for name, tensor in feeds.items()}


@torch.no_grad()
def _outputs(model: nn.Module, input_data: Any) -> list[Any]:
    args, kwargs = split_input_data(input_data)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    leaves = tree_leaves(model(*args, **kwargs))
    return [_array(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def _array(tensor: Tensor) -> Any:
    return LazyArray.of_tensor(tensor).read()


def _difference(one: Any, other: Any) -> float:
    """The largest one; infinite if one side only is NaN or infinite."""
    with np.errstate(invalid="ignore"):
        gaps = np.abs(one - other)
    gaps[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    return float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0))


def _largest(values: Any) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
