"""The activation function that alone reads a layer's output, as a torch function."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .site import constant_of

Activation = Callable[[Tensor], Tensor]


def activation_after(value: ir.Value) -> Activation | None:
    """ReLU, ReLU6, Sigmoid, Tanh, LeakyReLU, PReLU or GELU, or None where it is none of them."""
    if value.is_graph_output():
        return None
    consumers = list(value.consumers())
    if len(consumers) == 1:
        return _of_node(consumers[0])
    return F.gelu if _is_gelu(value, consumers) else None


def _of_node(node: ir.Node) -> Activation | None:
    match node.op_type:
        case "Relu":
            return torch.relu
        case "Sigmoid":
            return torch.sigmoid
        case "Tanh":
            return torch.tanh
        case "LeakyRelu":
            slope = node.attributes.get("alpha")
            return partial(F.leaky_relu, negative_slope=0.01 if slope is None else slope.as_float())
        case "PRelu":
            return _prelu_of(node)
        case "Clip" if [_scalar(bound) for bound in node.inputs[1:]] == [0.0, 6.0]:
            return F.relu6
        case "Gelu":
            kind = node.attributes.get("approximate")
            return partial(F.gelu, approximate="none" if kind is None else kind.as_string())
    return None


def _prelu_of(node: ir.Node) -> Activation | None:
    value, slopes = node.inputs[0], constant_of(node.inputs[1])
    rank = None if value is None or value.shape is None else len(value.shape)
    if slopes is None:
        return None
    # The rows of a Linear's output of more dimensions are put in one, which slopes of a dimension
    # between would not fit.
    producer = None if value is None else value.producer()
    is_conv = producer is not None and producer.op_type in ("Conv", "ConvTranspose")
    if slopes.size > 1 and not is_conv and rank != 2:
        return None
    slopes = slopes.reshape(()) if slopes.size == 1 else slopes
    return partial(_prelu, torch.tensor(slopes, dtype=torch.float32))


def _prelu(slopes: Tensor, x: Tensor) -> Tensor:
    """By the rules of ONNX, where slopes are broadcast against x."""
    return torch.where(x > 0, x, x * slopes.to(x.device))


def _is_gelu(value: ir.Value, consumers: list[ir.Node]) -> bool:
    """x / sqrt(2) -> Erf -> + 1 -> * x, as opsets before 20 spell it; the factor 1/2 is linear."""
    divisions = [node for node in consumers if node.op_type == "Div"]
    if len(consumers) != 2 or len(divisions) != 1:
        return False
    divisor = _scalar(divisions[0].inputs[1])
    if divisor is None or not math.isclose(divisor, math.sqrt(2), rel_tol=1e-4):
        return False
    node = divisions[0]
    for op_type in ("Erf", "Add", "Mul"):
        following = list(node.outputs[0].consumers())
        if [n.op_type for n in following] != [op_type]:
            return False
        node = following[0]
        if op_type == "Add" and 1.0 not in [_scalar(v) for v in node.inputs]:
            return False
    return node in consumers


def _scalar(value: ir.Value | None) -> float | None:
    array = constant_of(value)
    return float(np.asarray(array).item()) if array is not None and array.size == 1 else None
