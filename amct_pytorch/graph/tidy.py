"""Takes out of an exported graph what an exporter leaves there and no reader needs."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from .padding import fold_pad, write_out_padding
from .shapes import infer_shapes
from .site import LAYER_OPS, constant_of

RECURRENT_OPS = ("LSTM", "GRU")
LARGEST_WEIGHT = 2**40  # elements: no limit
MOST_FILLED = 1024  # elements of a constant that a ConstantOfShape may become


def tidy(model: ir.Model) -> None:
    """Separate parameters, explicit padding, no foldable constants, no notes; in place."""
    _separate_equal_initializers(model.graph)
    write_out_padding(model.graph)
    _drop_exporter_notes(model)
    infer_shapes(model)
    weights = _weights(model.graph)
    fold_constants(
        model, onnx_shape_inference=False, should_fold=lambda node: _should_fold(node, weights)
    )
    if reordered := _reordered(model.graph):
        fold_constants(
            model,
            onnx_shape_inference=False,
            output_size_limit=LARGEST_WEIGHT,
            should_fold=lambda node: node in reordered,
        )
    common.RemoveUnusedNodesPass()(model)


def fold_own_padding(nodes: dict[str, list[ir.Node]]) -> None:
    """Takes the Pad that is written for padding="same" into the convolution it belongs to."""
    for own in nodes.values():
        for node in own:
            source = node.inputs[0] if node.op_type == "Conv" else None
            if source is not None and source.producer() in own:
                fold_pad(node)


def _separate_equal_initializers(graph: ir.Graph) -> None:
    """Gives each parameter its own initializer again.

    The older exporter keeps one of several parameters with equal values and feeds the others from
    it through Identity; quantizing the one would then change the others.
    """
    for node in list(graph):
        if node.op_type != "Identity" or node.domain:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None or not source.is_initializer() or output.is_graph_output():
            continue
        own = ir.Value(
            name=output.name, type=source.type, shape=source.shape, const_value=source.const_value
        )
        output.replace_all_uses_with(own)
        graph.remove(node, safe=True)
        graph.register_initializer(own)


def _weights(graph: ir.Graph) -> set[ir.Value]:
    """The initializers that are weights of layers, or change when a BatchNorm is folded."""
    found = set()
    counts = {**dict.fromkeys(LAYER_OPS, 1), "Conv": 2, "BatchNormalization": 4}
    for value in [v for n in graph for v in n.inputs[1 : 1 + counts.get(n.op_type, 0)]]:
        while value is not None and not value.is_initializer():
            producer = value.producer()
            transposes = producer is not None and producer.op_type in ("Transpose", "Identity")
            value = producer.inputs[0] if producer is not None and transposes else None
        if value is not None:
            found.add(value)
    return found


def _should_fold(node: ir.Node, weights: set[ir.Value]) -> bool | None:
    """Small fills too, which stand in the padding that the older exporter writes; None: as ever.

    What is made of a layer's weight is not: its transpose would be a copy, and what forward
    computes of it changes when it is quantized.
    """
    if node.op_type != "Shape" and any(value in weights for value in node.inputs):
        return False
    shape = constant_of(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
    return True if shape is not None and math.prod(shape.tolist()) <= MOST_FILLED else None


def _reordered(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that put the gates of LSTM and GRU weights into the order of ONNX."""
    found: set[ir.Node] = set()
    todo = [v for n in graph if n.op_type in RECURRENT_OPS for v in n.inputs[1:4]]
    while todo:
        value = todo.pop()
        producer = None if value is None else value.producer()
        if producer is not None and producer not in found:
            found.add(producer)
            todo.extend(producer.inputs)
    return found


def _drop_exporter_notes(model: ir.Model) -> None:
    """Removes what the newer exporter notes in every node: among it lines and paths of the user."""
    for item in (model, model.graph, *model.graph, *model.graph.initializers.values()):
        item.metadata_props.clear()
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        value.metadata_props.clear()
