"""Folds BatchNorm into the convolution before it, in the torch model and in its captured graph."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..graph.capture import Capture
from ..graph.facts import ModelFacts, main_nodes
from ..graph.lazy_array import LazyArray
from ..graph.site import drop_if_unused, locate, replace_constants
from ..layers.finite import is_finite
from ..layers.fold import fold_batch_norm
from ..layers.folded import FoldedBatchNorm
from ..layers.replace import replace_modules

logger = logging.getLogger(__name__)


def fuse_batch_norms(
    model: nn.Module, capture: Capture, facts: ModelFacts, skip: Collection[str] = ()
) -> dict[str, str]:
    """Folds in place every pair of `facts.batch_norms`; returns those folded, BatchNorm -> conv.

    A convolution named in `skip`, a BatchNorm in training mode and one whose folded values are
    not finite stay as they are; the last two are logged.
    """
    fused = {}
    folded: dict[nn.Module, nn.Module] = {}
    for bn_name, conv_name in facts.batch_norms.items():
        bn: Any = model.get_submodule(bn_name)
        conv: Any = model.get_submodule(conv_name)
        if conv_name in skip:
            continue
        if bn.training:
            logger.warning(
                "%s is in training mode and is not folded into %s; call model.eval() first",
                bn_name,
                conv_name,
            )
            continue
        if not _fuse_modules(conv, bn):
            logger.warning(
                "%s is not folded into %s: the folded values are not finite", bn_name, conv_name
            )
            continue
        folded[bn] = FoldedBatchNorm(bn)
        _fuse_nodes(capture, facts, bn_name, conv_name, conv)
        fused[bn_name] = conv_name
    replace_modules(model, folded)
    return fused


@torch.no_grad()
def _fuse_modules(conv: Any, bn: Any) -> bool:
    folded, folded_bias, _ = fold_batch_norm(conv.weight, conv.bias, bn)
    weight, bias = folded.to(conv.weight.dtype), folded_bias.to(conv.weight.dtype)
    if not (is_finite(weight) and is_finite(bias)):
        return False
    conv.weight.copy_(weight)  # in place: what the captured graph holds is this memory
    if conv.bias is None:
        conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
    else:
        conv.bias.copy_(bias)
    return True


def _fuse_nodes(
    capture: Capture, facts: ModelFacts, bn_name: str, conv_name: str, conv: Any
) -> None:
    node = main_nodes(capture, conv_name, facts.layers[conv_name].kind)[0]
    weight, bias = LazyArray.of_tensor(conv.weight), LazyArray.of_tensor(conv.bias)
    replace_constants(locate(node), conv_name, weight, bias)
    run = next(n for n in capture.nodes[bn_name] if n.op_type == "BatchNormalization")
    folded, output = node.outputs[0], run.outputs[0]
    graph = capture.model.graph
    if output.is_graph_output():
        folded.name = output.name
    output.replace_all_uses_with(folded, replace_graph_outputs=True)
    inputs = list(run.inputs)
    graph.remove(run, safe=True)
    for value in inputs[1:]:
        drop_if_unused(value)
