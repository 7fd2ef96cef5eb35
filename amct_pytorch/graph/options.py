"""What the user asks of the ONNX files, and of the tracing input: checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

OPSETS = range(11, 24)
DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]


@dataclass(frozen=True)
class ExportOptions:
    """Names, dynamic axes and opset of the exported graph; raises on what no exporter takes."""

    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_axes: DynamicAxes | None = None
    opset_version: int = 13

    def __post_init__(self) -> None:
        _check_names("input_names", self.input_names)
        _check_names("output_names", self.output_names)
        _check_dynamic_axes(self.dynamic_axes)
        opset = self.opset_version
        if isinstance(opset, bool) or not isinstance(opset, int):
            raise TypeError(f"opset_version: expected an int, got {type(opset).__name__}")
        if opset not in OPSETS:
            raise ValueError(
                f"opset_version: expected {OPSETS.start} to {OPSETS.stop - 1}, got {opset}"
            )


def split_input_data(input_data: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model: a dict at the end holds keyword arguments."""
    if isinstance(input_data, Tensor):
        return (input_data,), {}
    if not isinstance(input_data, tuple):
        raise RuntimeError(
            "input_data: expected a torch.Tensor or a tuple of the model's arguments (keyword "
            f"arguments as a dict at the end), got {type(input_data).__name__}"
        )
    if input_data and isinstance(input_data[-1], dict):
        return input_data[:-1], dict(input_data[-1])
    return input_data, {}


def _check_names(argument: str, names: object) -> None:
    if names is None:
        return
    if not isinstance(names, list | tuple):
        raise TypeError(f"{argument}: expected a list of str, got {type(names).__name__}")
    for name in names:
        if not isinstance(name, str):
            raise RuntimeError(f"{argument}: expected str elements, got {name!r}")


def _check_dynamic_axes(dynamic_axes: object) -> None:
    if dynamic_axes is None:
        return
    if not isinstance(dynamic_axes, dict):
        raise TypeError(f"dynamic_axes: expected a dict, got {type(dynamic_axes).__name__}")
    for name, axes in dynamic_axes.items():
        if not isinstance(name, str):
            raise RuntimeError(
                f"dynamic_axes: expected the name of an input or output, got {name!r}"
            )
        if not isinstance(axes, dict | list):
            raise RuntimeError(
                f"dynamic_axes[{name!r}]: expected {{axis: name}} or a list of axes, got {axes!r}"
            )
        for axis in axes:
            if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
                raise RuntimeError(
                    f"dynamic_axes[{name!r}]: expected axes that are ints >= 0, got {axis!r}"
                )
        if isinstance(axes, dict):
            for axis, dim in axes.items():
                if not isinstance(dim, str):
                    raise RuntimeError(
                        f"dynamic_axes[{name!r}][{axis}]: expected the name of the dimension as "
                        f"a str, got {dim!r}"
                    )
