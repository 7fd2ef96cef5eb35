"""Types and shapes of the values of a graph, by the shape inference of ONNX."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

logger = logging.getLogger(__name__)

MOST_READ = 256  # bytes of a constant that shapes may depend on


def infer_shapes(model: ir.Model) -> None:
    """Gives every value its type and shape, in place; leaves all as it is where ONNX fails.

    Weights are inputs to the inference: it needs their shapes and not their values.
    """
    proto = _without_weights(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:  # of several libraries; what the exporter said still holds
        logger.debug("shapes are not inferred: %s", error)
        return
    values = {value.name: value for node in model.graph for value in node.outputs}
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        value = values.get(info.name)
        if value is None:
            continue
        if (inferred_type := ir.serde.deserialize_type_proto_for_type(info.type)) is not None:
            value.type = inferred_type
        if (shape := ir.serde.deserialize_type_proto_for_shape(info.type)) is not None:
            value.shape = shape


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    graph = model.graph
    weights = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > MOST_READ:
            weights[name] = tensor
            value.const_value = ir.tensor([0], name=name)
    try:
        proto = ir.to_proto(model)
    finally:
        for name, tensor in weights.items():
            graph.initializers[name].const_value = tensor
    small = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    inputs = {value.name for value in graph.inputs}
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
        for name, tensor in weights.items()
        if name not in inputs
    )
    return proto
