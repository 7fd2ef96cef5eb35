"""The input of a DMQ-balanced layer in a graph: multiplied by the inverse factors of its record."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from ..graph.site import Site
from ..records import Records
from .placement import free_name


def balance_input(graph: ir.Graph, name: str, site: Site, factors: Sequence[float]) -> None:
    """Inserts `<name>.mul` by the constant `<name>.tensor_balance_factor` at the site's input.

    The constant is fl(1/f), rounded to float32 and then to the dtype of the layer.
    """
    assert site.weight is not None
    inverse = (np.float32(1) / np.asarray(factors, np.float32)).astype(site.weight.dtype)
    if site.node.op_type in ("Conv", "ConvTranspose"):
        inverse = inverse.reshape(1, -1, *[1] * (site.weight.ndim - 2))
    constant = ir.Node(
        "",
        "Constant",
        [],
        [ir.AttrTensor("value", ir.tensor(inverse))],
        name=free_name(graph, f"{name}.tensor_balance_factor"),
    )
    factor, source = constant.outputs[0], site.input
    factor.type, factor.shape = ir.TensorType(site.dtype), ir.Shape(inverse.shape)
    mul = ir.Node("", "Mul", [source, factor], name=free_name(graph, f"{name}.mul"))
    balanced = mul.outputs[0]
    balanced.type, balanced.shape = source.type, source.shape
    for node in (constant, mul):
        node.outputs[0].name = f"{node.name}.output0"
        graph.insert_before(site.node, node)
    site.node.replace_input_with(site.operand, balanced)


def check_balanced(balanced: Collection[str], records: Records) -> None:
    """Raises RuntimeError unless every layer with balanced weights has its factors in the record.

    A layer that is left float needs them, too.
    """
    for name in balanced:
        if name not in records or not records[name].tensor_balance_factor:
            raise RuntimeError(
                f'{records.source}: layer "{name}": tensor_balance_factor: expected one for each '
                "input channel, as the modified model has balanced weights for this layer, found "
                "none; restore it (to leave the layer float remove its other factors only), or "
                "calibrate again"
            )
