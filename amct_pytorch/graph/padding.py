"""Padding as attributes of the node that needs it, so that no node stands before a layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .site import constant_of, drop_if_unused


def write_out_padding(graph: ir.Graph) -> None:
    """Gives convolutions exported with auto_pad their pads: runtimes refuse it with dilation."""
    for node in graph:
        auto_pad = node.attributes.get("auto_pad")
        if node.op_type != "Conv" or auto_pad is None or auto_pad.as_string() != "SAME_UPPER":
            continue
        strides, dilations = node.attributes.get("strides"), node.attributes.get("dilations")
        kernel = node.attributes["kernel_shape"].as_ints()
        if strides is not None and set(strides.as_ints()) != {1}:
            continue
        spread = dilations.as_ints() if dilations is not None else [1] * len(kernel)
        total = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        begin = [t // 2 for t in total]
        end = [t - b for t, b in zip(total, begin, strict=True)]
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)


def fold_pad(node: ir.Node) -> bool:
    """Moves a Pad with zeros before a Conv or AveragePool into its `pads`; whether there was one.

    An exporter writes such a Pad for padding="same" and for count_include_pad=True. A pooling
    with ceil_mode or pads of its own would count other values at the border; its Pad stays.
    """
    pad = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    amounts = None if pad is None else _amounts(pad)
    if pad is None or amounts is None:
        return False
    own = _ints(node, "pads") or [0] * len(amounts)
    if node.op_type == "AveragePool":
        if any(own) or any(_ints(node, "ceil_mode")):
            return False
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    elif node.op_type != "Conv" or _is_automatic(node):
        return False
    total = [a + b for a, b in zip(amounts, own, strict=True)]
    node.attributes["pads"] = ir.AttrInt64s("pads", total)
    node.replace_input_with(0, pad.inputs[0])
    constants = pad.inputs[1:]
    assert pad.graph is not None
    pad.graph.remove(pad, safe=True)
    for value in constants:
        drop_if_unused(value)
    return True


def _amounts(pad: ir.Node) -> list[int] | None:
    """Zeros that `pad` alone puts around the spatial dimensions for one reader, else None."""
    mode = pad.attributes.get("mode")
    if pad.op_type != "Pad" or (mode is not None and mode.as_string() != "constant"):
        return None
    if pad.outputs[0].is_graph_output() or len(pad.outputs[0].uses()) != 1:
        return None
    _, pads, fill, axes = (*pad.inputs, None, None, None)[:4]
    counts, value = constant_of(pads), np.zeros(1) if fill is None else constant_of(fill)
    if counts is None or value is None or np.any(value != 0) or axes is not None:
        return None
    amounts = [int(n) for n in counts.reshape(-1)]
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    if any(begin[:2]) or any(end[:2]) or min(amounts) < 0:
        return None
    return begin[2:] + end[2:]


def _ints(node: ir.Node, name: str) -> list[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return []
    return (
        [attribute.as_int()] if attribute.type == ir.AttributeType.INT else [*attribute.as_ints()]
    )


def _is_automatic(node: ir.Node) -> bool:
    auto_pad = node.attributes.get("auto_pad")
    return auto_pad is not None and auto_pad.as_string() != "NOTSET"
