"""Where an LSTM or GRU sits in an ONNX graph, and its constants as ONNX lays them out.

W [1, G*H, I], R [1, G*H, H] and B [1, 2*G*H] (that of W, then that of R), with the gates in the
order of ONNX. The NPU has operators for one layer in one direction, with the usual activations,
that is called with its initial states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from torch import nn

from ..layers.gates import gates_to_onnx
from .lazy_array import Array
from .site import UnsupportedSiteError, constant_of, replace_input

GATES = {"LSTM": 4, "GRU": 3}
_ABSENT = ("activations", "activation_alpha", "activation_beta", "clip")
# Attribute: what ONNX takes when it is absent, what it must be.
_FIXED: dict[str, dict[str, tuple[object, object]]] = {
    "LSTM": {"direction": ("forward", "forward"), "layout": (0, 0), "input_forget": (0, 0)},
    "GRU": {"direction": ("forward", "forward"), "layout": (0, 0), "linear_before_reset": (0, 1)},
}


@dataclass(frozen=True)
class RecurrentSite:
    """The node of an LSTM or GRU with its constants."""

    node: ir.Node
    weight: Array
    recurrence: Array
    bias: Array  # zeros when the node has none

    @property
    def input(self) -> ir.Value:
        return _present(self.node.inputs[0])

    @property
    def initial_h(self) -> ir.Value:
        return _present(self.node.inputs[5])

    @property
    def initial_c(self) -> ir.Value | None:
        return _present(self.node.inputs[6]) if self.node.op_type == "LSTM" else None


def locate_recurrent(node: ir.Node) -> RecurrentSite:
    """The site of an LSTM or GRU node; UnsupportedSiteError says why it is none."""
    op = node.op_type
    if op not in GATES or node.domain not in ("", "ai.onnx"):
        raise UnsupportedSiteError(f"it is a {op} node, not one of {', '.join(GATES)}")
    for name in _ABSENT:
        if name in node.attributes:
            raise UnsupportedSiteError(f"it has {name}, only the defaults can be quantized")
    for name, (default, expected) in _FIXED[op].items():
        value = node.attributes[name].value if name in node.attributes else default
        if value != expected:
            raise UnsupportedSiteError(f"it has {name}={value}, only {expected} can be quantized")
    _, w, r, b, lengths, h, c, peepholes = (*node.inputs, *(None,) * 8)[:8]
    if lengths is not None:
        raise UnsupportedSiteError("it is called on a packed sequence")
    if peepholes is not None:
        raise UnsupportedSiteError("it has peepholes")
    for state in (h, c) if op == "LSTM" else (h,):
        if state is None or not _comes_from_input(state):
            raise UnsupportedSiteError("its initial states do not come from an input of the model")
    weight, recurrence, bias = constant_of(w), constant_of(r), constant_of(b)
    if weight is None or recurrence is None or (b is not None and bias is None):
        raise UnsupportedSiteError("its weights are computed in forward, not constants")
    if weight.dtype != np.float32:
        raise UnsupportedSiteError(f"its weights are {weight.dtype}, only float32 can be quantized")
    if bias is None:
        bias = np.zeros((1, 2 * weight.shape[1]), np.float32)
    return RecurrentSite(node, weight, recurrence, bias)


def replace_recurrent_constants(
    site: RecurrentSite, name: str, weight: Array, recurrence: Array, bias: Array
) -> None:
    """Gives the node initializers of its own: `<name>.weight`, `.recurrence` and `.bias`."""
    graph = site.node.graph
    assert isinstance(graph, ir.Graph)
    constants = {"weight": weight, "recurrence": recurrence, "bias": bias}
    for index, (part, array) in enumerate(constants.items(), start=1):
        replace_input(graph, site.node, index, f"{name}.{part}", array)


def why_not_module(module: nn.Module) -> str | None:
    """Why an LSTM or GRU module cannot be quantized, or None."""
    allowed = {"num_layers": 1, "bidirectional": False, "dropout": 0, "proj_size": 0}
    for name, value in allowed.items():
        if getattr(module, name) != value:
            return f"it has {name}={getattr(module, name)}, only {value} can be quantized"
    keys = ("weight_ih_l0", "weight_hh_l0") + (("bias_ih_l0", "bias_hh_l0") if module.bias else ())
    for key in keys:
        if key not in module._parameters:
            return f"its {key} is parametrized, not a plain parameter"
    return None


def why_not_node(node: ir.Node, module: nn.Module, kind: str, own: set[ir.Node]) -> str | None:
    """Why the node of an LSTM or GRU module, one of its `own`, cannot be quantized, or None."""
    try:
        site = locate_recurrent(node)
    except UnsupportedSiteError as error:
        return str(error)
    for value in (site.input, site.initial_h):
        producer = value.producer()
        if producer not in own or producer.op_type in ("Transpose", "Slice"):  # of batch_first
            continue
        if producer.op_type == "Unsqueeze":
            return "it is called on an input without a batch dimension"
        return f"its forward runs {producer.op_type} before {node.op_type}"
    for name, array in (("weight_ih_l0", site.weight), ("weight_hh_l0", site.recurrence)):
        rows = gates_to_onnx(module.get_parameter(name).detach().cpu(), kind).numpy()
        if not np.array_equal(array, rows[None], equal_nan=True):
            return f"its {name} is computed in forward, not its parameter"
    return None


def _comes_from_input(value: ir.Value) -> bool:
    """Whether the numbers in `value`, not only its shape, depend on an input of the graph."""
    seen: set[ir.Value] = set()
    todo = [value]
    while todo:
        value = todo.pop()
        if value.is_graph_input() and not value.is_initializer():
            return True
        producer = value.producer()
        if value not in seen and producer is not None and producer.op_type not in ("Shape", "Size"):
            todo.extend(source for source in producer.inputs if source is not None)
        seen.add(value)
    return False


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
