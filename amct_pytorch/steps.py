"""The steps that verbs share: prepare a model, quantize its weights, observe its activations."""

from __future__ import annotations

import copy
import gc
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from .capability import kind_of
from .config.layer import AdaConfig, LayerConfig
from .config.ptq import QuantConfig
from .export.graphs import BALANCED_LAYERS, QUANTIZED_LAYERS
from .graph.activation import activation_after
from .graph.capture import Capture, capture
from .graph.facts import ModelFacts, analyze, is_of_interest, main_nodes
from .graph.options import ExportOptions, split_input_data
from .graph.site import locate
from .layers.base import check_not_processed
from .layers.calibrate import Calibration
from .records import LayerRecord
from .transforms.adaround_calibration import AdaRoundCalibration
from .transforms.dmq import Balance, balance_inputs, balance_weights, with_balance
from .transforms.fuse_bn import fuse_batch_norms
from .transforms.insert import insert_calibration
from .transforms.quantize_weights import float_weights, quantize_weights, write_weights
from .transforms.reconstruct import Rounding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A copy of the user's model and its graph, both in float, with BatchNorms folded."""

    model: nn.Module
    captured: Capture
    facts: ModelFacts
    config: QuantConfig
    fused: dict[str, str]  # BatchNorm -> the convolution it was folded into

    @property
    def layers(self) -> dict[str, LayerConfig]:
        """The layers to quantize in the order of the modules, which is that of the record."""
        enabled = self.config.enabled
        return {name: enabled[name] for name in self.facts.layers if name in enabled}


def prepare(
    config_file: str, model: nn.Module, input_data: Any, options: ExportOptions
) -> Prepared:
    """Captures `model`, a copy that this function may change, and reads its configuration."""
    captured, facts = capture_model(model, input_data, options)
    config = QuantConfig.load(config_file, facts)
    fused = {}
    if config.do_fusion:
        fused = fuse_batch_norms(model, captured, facts, config.skip_fusion_layers)
    name_layers(captured, facts)
    return Prepared(model, captured, facts, config, fused)


def start_calibration(
    model: nn.Module, prepared: Prepared, layers: Mapping[str, LayerConfig], balance: Balance
) -> tuple[dict[str, LayerRecord], Calibration]:
    """Quantizes the weights of `layers` and lets their inputs be observed, in place.

    `model` is the prepared model or a copy of it; layers of `balance` are balanced first.
    """
    balance = {name: factors for name, factors in balance.items() if name in layers}
    balance_weights(model, balance)
    unrounded = float_weights(model, layers)
    weights = _quantize(model, prepared, layers, balance)
    calibration = insert_calibration(model, layers, prepared.config.batch_num)
    calibration.float_weights = unrounded
    balance_inputs(model, balance)
    return weights, calibration


def balance_and_quantize(
    model: nn.Module, prepared: Prepared, layers: Mapping[str, LayerConfig], balance: Balance
) -> dict[str, LayerRecord]:
    """Quantizes the weights of `layers`, in place; those of `balance` are balanced first."""
    balance_weights(model, balance)
    return _quantize(model, prepared, layers, balance)


def follow_adaround(
    model: nn.Module,
    prepared: Prepared,
    weights: Mapping[str, LayerRecord],
    calibration: Calibration,
    rounded: Callable[[nn.Module], None],
    progress: bool = False,
) -> AdaRoundCalibration:
    """Lets the roundings of AdaRound layers be learnt when `model` has seen its batches.

    `weights` and `calibration` are what `start_calibration` returned; `rounded` is called on the
    model that is then there, before its activations are observed.
    """
    roundings = {}
    for node in prepared.captured.model.graph:  # in the order of execution
        name = node.name
        if name in calibration.float_weights:
            config = prepared.layers[name].weight_quant_params
            assert isinstance(config, AdaConfig)
            roundings[name] = Rounding(
                config,
                calibration.float_weights[name],
                weights[name].scale_w,
                activation_after(locate(node).output),
            )
    following = AdaRoundCalibration(calibration, roundings, rounded, progress)
    following.follow(model)
    return following


def _quantize(
    model: nn.Module, prepared: Prepared, layers: Mapping[str, LayerConfig], balance: Balance
) -> dict[str, LayerRecord]:
    mode = prepared.config.fakequant_precision_mode
    return with_balance(quantize_weights(model, prepared.facts, layers, mode), balance)


def modified_graph(
    prepared: Prepared,
    model: nn.Module,
    layers: Mapping[str, LayerConfig],
    balanced: Collection[str],
) -> ir.Model:
    """The captured graph with the weights of a model that `start_calibration` has changed.

    The layers of `balanced` have weights that want a balanced input.
    """
    write_weights(prepared.captured, model, prepared.facts, layers)
    graph = prepared.captured.model
    graph.metadata_props[QUANTIZED_LAYERS] = json.dumps(list(layers))
    if balanced:
        graph.metadata_props[BALANCED_LAYERS] = json.dumps(list(balanced))
    return graph


def check_types(verb: str, **arguments: tuple[Any, ...]) -> None:
    """Raises TypeError for the first argument (value, type, ...) that is of none of its types."""
    for name, (value, *allowed) in arguments.items():
        types = tuple(t for t in allowed if t is not None)
        if value is None and None in allowed:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join("None" if t is None else t.__name__ for t in allowed)
            raise TypeError(f"{verb}: {name}: expected {expected}, got {type(value).__name__}")


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Tensors made inside that mode can never be learnt on; whether gradients are kept stays."""
    kept = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(kept):
        yield


@contextmanager
def collector_paused() -> Iterator[None]:
    """Cycles are not looked for inside: graphs are many objects in cycles that are all in use.

    Making them would let the collector go through all objects of the process again and again, and
    keep them as old ones; when this ends they are young and out of use.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def copy_model(model: nn.Module, required: bool = True) -> nn.Module:
    """A copy of the user's model; RuntimeError if it cannot be copied and `required`."""
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        if required:
            raise RuntimeError(
                f"the model cannot be copied ({type(error).__name__}: {error}); quantization works "
                "on a copy: make copy.deepcopy(model) work"
            ) from error
        logger.warning("the model cannot be copied (%s); it is traced itself", error)
        return model
    _separate(copied, model)
    return copied


def _separate(copied: nn.Module, model: nn.Module) -> None:
    """Gives `copied` tensors of its own where a `__deepcopy__` of the user's lets it share some."""
    taken = {_address(t) for t in (*model.parameters(), *model.buffers())} - {0}
    if not any(_address(t) in taken for t in (*copied.parameters(), *copied.buffers())):
        return
    own: dict[Tensor, Tensor] = {}  # by the shared one, which may be tied
    for module in copied.modules():
        for attribute in ("_parameters", "_buffers"):
            tensors = dict(getattr(module, attribute))  # which the two may share as well
            for name, tensor in tensors.items():
                if tensor is not None and _address(tensor) in taken:
                    tensors[name] = own.setdefault(tensor, copy.deepcopy(tensor))
            setattr(module, attribute, tensors)


def _address(tensor: Tensor) -> int:
    """Where the values of a tensor are; 0 for one that has none, or not in one place."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):
        return 0


def capture_model(
    model: nn.Module, input_data: Any, options: ExportOptions
) -> tuple[Capture, ModelFacts]:
    """One capture of `model` and its facts; RuntimeError for a model that cannot be used."""
    check_not_processed(model)
    split_input_data(input_data)
    if kind_of(model) is not None:
        raise RuntimeError(
            f"the model itself is a {type(model).__name__} layer, which has no name to configure; "
            "wrap it: torch.nn.Sequential(model)"
        )
    captured = capture(model, input_data, options, is_of_interest)
    return captured, analyze(model, captured)


def list_float_layers(facts: ModelFacts) -> None:
    """Warns of every layer that cannot be quantized, with the reason."""
    for layer in facts.layers.values():
        if layer.reason is not None:
            logger.warning("%s (%s) is left float: %s", layer.name, layer.kind, layer.reason)


def name_layers(captured: Capture, facts: ModelFacts) -> None:
    """Gives the node of every layer the layer's name."""
    nodes = {
        name: main_nodes(captured, name, layer.kind)[0]
        for name, layer in facts.layers.items()
        if layer.reason is None
    }
    for node in captured.model.graph:
        if node.name in nodes and nodes[node.name] is not node:
            node.name = f"{node.name}_{node.op_type}"
    for name, node in nodes.items():
        node.name = name
