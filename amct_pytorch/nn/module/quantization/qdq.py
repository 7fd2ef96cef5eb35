"""QuantizeLinear and DequantizeLinear in the graph that torch.onnx.export writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FIRST_PER_AXIS, FIRST_INT16 = 13, 21  # opsets


def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """The two nodes, for either exporter; `axis` is that of per-channel factors.

    Raises RuntimeError for an opset that does not have them, as far as it is known.
    """
    if torch._C._get_tracing_state() is not None:
        result: Tensor = _Nodes.apply(x, scale, zero_point, axis)  # type: ignore[no-untyped-call]
        return result
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    version = FIRST_INT16 if zero_point.dtype == torch.int16 else None
    codes = torch.onnx.ops.symbolic(
        "QuantizeLinear",
        (x, scale, zero_point),
        attributes,
        dtype=zero_point.dtype,
        shape=x.shape,
        version=version,
    )
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (codes, scale, zero_point),
        attributes,
        dtype=x.dtype,
        shape=x.shape,
        version=version,
    )


class _Nodes(torch.autograd.Function):
    """For the older exporter, which calls `symbolic`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
        needed = FIRST_PER_AXIS if axis is not None else 10
        if zero_point.type().dtype() == torch.int16:
            needed = FIRST_INT16
        if g.opset < needed:
            raise RuntimeError(
                f"this quantization needs opset_version {needed} or later, got {g.opset}"
            )
        attributes = {} if axis is None else {"axis_i": axis}
        codes = g.op("QuantizeLinear", x, scale, zero_point, **attributes)
        return g.op("DequantizeLinear", codes, scale, zero_point, **attributes)
