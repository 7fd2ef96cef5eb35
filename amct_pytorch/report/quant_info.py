"""The quantization information file: where quantization stands in the deploy graph, and what not.

Per layer: the AscendQuant in front of its node and the AscendDequant behind it, the BatchNorms
folded into it, and for a layer in float the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from ..files import Content, content_bytes
from ..search.model_search import ModelSearch
from ..search.output_paths import OutputPaths
from ..search.result import Trial
from .states import layer_states


def describe_graph(
    search: ModelSearch, winner: Trial, models: Mapping[str, Content], paths: OutputPaths
) -> dict[str, Any]:
    """The content of the file, for the models that are written to `paths`."""
    graph = onnx.load_from_string(content_bytes(models[paths.models["deploy"]])).graph
    quants = {n.output[0]: n.name for n in graph.node if n.op_type == "AscendQuant"}
    inputs = {n.name: n.input[0] for n in graph.node if n.input}
    fused: dict[str, list[str]] = {}
    for batch_norm, conv in search.prepared.fused.items():
        fused.setdefault(conv, []).append(batch_norm)
    dequants = {n.name.rpartition(".dequant")[0]: n.name for n in graph.node if _is_dequant(n)}
    layers = []
    for name, state in layer_states(search, winner).items():
        quantized = state.state == "quantized"
        layers.append(
            {
                "layer": name,
                "type": search.prepared.facts.layers[name].kind,
                "quantized": quantized,
                "quant_node": quants.get(inputs.get(name, "")) if quantized else None,
                "dequant_node": dequants.get(name) if quantized else None,
                "fused": fused.get(name, []),
                "reason": None if quantized else state.reason,
            }
        )
    return {
        "format": 1,
        "deploy_model": Path(paths.models["deploy"]).name,
        "fake_quant_model": Path(paths.models["fake_quant"]).name,
        "fused": search.prepared.fused,
        "layers": layers,
    }


def _is_dequant(node: onnx.NodeProto) -> bool:
    return node.op_type == "AscendDequant"
