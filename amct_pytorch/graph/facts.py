"""Read-only facts about a model, from one capture: its layers, and why one cannot be quantized."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from torch import nn

from ..capability import BY_KIND, KINDS, kind_of
from .capture import Capture
from .lazy_array import LazyArray
from .recurrent import why_not_module, why_not_node
from .site import UnsupportedSiteError, is_shared, locate

MAIN_OPS = {
    "Conv1d": ("Conv",),
    "Conv2d": ("Conv",),
    "Conv3d": ("Conv",),
    "ConvTranspose1d": ("ConvTranspose",),
    "ConvTranspose2d": ("ConvTranspose",),
    "Linear": ("Gemm", "MatMul"),
    "AvgPool2d": ("AveragePool",),
    "LSTM": ("LSTM",),
    "GRU": ("GRU",),
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Layer:
    """A module of a quantizable type."""

    name: str  # dotted path in named_modules()
    kind: str  # a key of capability.BY_KIND
    reason: str | None  # why it stays float whatever the configuration says; None: quantizable
    has_bias: bool = False
    groups: int = 1
    in_channels: int = 0  # 0 for AvgPool2d
    out_channels: int = 0  # of LSTM and GRU: the size of the hidden state
    input: str = ""  # the value in the graph that it reads; layers of one value share their input
    input_op: str = ""  # what computes that value, like "Relu"; empty for an input of the graph
    bias_added: bool = False  # the bias, by a node of its own behind a MatMul


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration and the verbs need to know about a model."""

    layers: dict[str, Layer]  # every module of a quantizable type, in named_modules() order
    modules: dict[str, str]  # every module path -> class name
    batch_norms: dict[str, str] = field(default_factory=dict)  # BatchNorm -> conv it follows alone
    kinds: tuple[str, ...] = KINDS  # the quantizable types that were looked for


def is_of_interest(module: nn.Module) -> bool:
    """Whether a capture has to know which nodes `module` made."""
    return kind_of(module) is not None or isinstance(module, BATCH_NORMS)


def main_nodes(capture: Capture, name: str, kind: str) -> list[ir.Node]:
    """The nodes that do the work of the layer `name`: one for each time it runs."""
    return [n for n in capture.nodes.get(name, ()) if n.op_type in MAIN_OPS[kind]]


def analyze(model: nn.Module, capture: Capture) -> ModelFacts:
    """The facts of `model` as `capture` (of the same model) shows them."""
    owners = _parameter_owners(model)
    layers = {}
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is None:
            continue
        reason = _reason(name, module, kind, capture, owners)
        value, producer, bias_added = "", "", False
        if reason is None:
            node = main_nodes(capture, name, kind)[0]
            value, producer = _input(node, capture.nodes[name])
            bias_added = kind == "Linear" and locate(node).bias_add is not None
        layers[name] = Layer(
            name,
            kind,
            reason,
            input=value,
            input_op=producer,
            has_bias=_has_bias(module),
            bias_added=bias_added,
            groups=getattr(module, "groups", 1),
            in_channels=_first_of(module, "in_channels", "in_features", "input_size"),
            out_channels=_first_of(module, "out_channels", "out_features", "hidden_size"),
        )
    modules = {name: type(m).__name__ for name, m in model.named_modules(remove_duplicate=False)}
    return ModelFacts(layers, modules, _batch_norms(model, capture, layers, owners))


def _input(node: ir.Node, own: list[ir.Node]) -> tuple[str, str]:
    """The name of what a layer reads, and the type of the node that computes it."""
    value = node.inputs[0]
    assert value is not None
    producer = value.producer()
    if producer in own:  # the padding of an average pooling
        return _input(producer, own)
    return str(value.name), "" if producer is None else producer.op_type


def _has_bias(module: nn.Module) -> bool:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, bool) else bias is not None


def _first_of(module: nn.Module, *attributes: str) -> int:
    return next((getattr(module, name) for name in attributes if hasattr(module, name)), 0)


def _parameter_owners(model: nn.Module) -> dict[int, list[str]]:
    """Paths of the modules that hold a parameter, by its identity."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def _shared_with(module: nn.Module, name: str, owners: dict[int, list[str]]) -> str | None:
    for key, parameter in module._parameters.items():
        others = [other for other in owners.get(id(parameter), ()) if other != name]
        if others:
            names = ", ".join(other or "the model itself" for other in others)
            return f"it shares its {key} with {names}"
    return None


def _reason(
    name: str, module: nn.Module, kind: str, capture: Capture, owners: dict[int, list[str]]
) -> str | None:
    nodes = capture.nodes.get(name, [])
    if not nodes:
        return "forward does not call it with this input_data"
    main = main_nodes(capture, name, kind)
    recurrent = BY_KIND[kind].recurrent
    if recurrent and (reason := why_not_module(module)):
        return reason
    if len(main) > 1:
        return f"it runs {len(main)} times in one forward"
    if not main:
        return f"its forward makes no {' or '.join(MAIN_OPS[kind])} node"
    if recurrent:
        shared = _shared_with(module, name, owners)
        return shared or why_not_node(main[0], module, kind, set(nodes))
    return (
        _shared_with(module, name, owners)
        or _module_reason(module, kind)
        or _node_reason(main[0], module, kind, set(nodes))
    )


def _module_reason(module: nn.Module, kind: str) -> str | None:
    padding_mode = getattr(module, "padding_mode", "zeros")
    if padding_mode != "zeros":
        return f"it has padding_mode {padding_mode!r}, only 'zeros' can be quantized"
    if kind == "Conv3d" and module.dilation[0] != 1:  # type: ignore[index]
        return f"it has dilation {module.dilation}, the first entry must be 1"
    for key in () if kind == "AvgPool2d" else ("weight", "bias"):
        if key not in module._parameters:
            return f"its {key} is parametrized, not a plain parameter"
    return None


def _node_reason(node: ir.Node, module: nn.Module, kind: str, own: set[ir.Node]) -> str | None:
    try:
        site = locate(node)
    except UnsupportedSiteError as error:
        return str(error)
    producer = site.input.producer()
    if producer in own and not (kind == "AvgPool2d" and producer.op_type == "Pad"):
        if producer.op_type == "Unsqueeze":
            return "it is called on an input without a batch dimension"
        return f"its forward runs {producer.op_type} before {node.op_type}"
    for consumer in site.output.consumers():
        if consumer in own:
            return f"its forward runs {consumer.op_type} after {node.op_type}"
    if site.weight is None:
        return None
    rank = None if site.input.shape is None else len(site.input.shape)
    if kind == "Linear" and rank is not None and not 2 <= rank <= 4:
        return f"it is called on inputs of {rank} dimensions, not 2 to 4"
    if is_shared(node.inputs[1]):
        return "its weight is also used elsewhere in forward"
    weight = LazyArray.of_tensor(module.weight)  # type: ignore[arg-type]
    if not _same(site.weight, weight.transposed() if kind == "Linear" else weight):
        return "its weight is computed in forward, not its parameter"
    return None


def _same(one: LazyArray, other: LazyArray) -> bool:
    """Whether two arrays have the same values."""
    if one.shape != other.shape:
        return False
    a, b = one.read(), other.read()
    same_memory = a.__array_interface__["data"] == b.__array_interface__["data"]
    return (same_memory and a.strides == b.strides) or np.array_equal(a, b, equal_nan=True)


def _batch_norms(
    model: nn.Module,
    capture: Capture,
    layers: dict[str, Layer],
    owners: dict[int, list[str]],
) -> dict[str, str]:
    """BatchNorm modules whose one run alone consumes the output of a convolution."""
    convs = {
        main_nodes(capture, layer.name, layer.kind)[0]: layer.name
        for layer in layers.values()
        if layer.kind in ("Conv1d", "Conv2d", "Conv3d") and layer.reason is None
    }
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, BATCH_NORMS) or _shared_with(module, name, owners):
            continue
        runs = [n for n in capture.nodes.get(name, ()) if n.op_type == "BatchNormalization"]
        if len(runs) != 1 or not module.affine or not module.track_running_stats:
            continue
        source = runs[0].inputs[0]
        assert source is not None
        if source.is_graph_output() or len(source.uses()) != 1:
            continue
        producer = source.producer()
        if producer in convs and _can_be_folded(producer, runs[0], set(capture.nodes[name])):
            found[name] = convs[producer]
    return found


def _can_be_folded(conv: ir.Node, batch_norm: ir.Node, own: set[ir.Node]) -> bool:
    """Whether nothing is lost with the BatchNorm and nobody else reads what folding changes.

    `own` are the nodes of its module, which may be of a class that goes on behind it.
    """
    if any(consumer in own for consumer in batch_norm.outputs[0].consumers()):
        return False
    return not any(is_shared(value) for value in (*conv.inputs[2:], *batch_norm.inputs[1:]))
