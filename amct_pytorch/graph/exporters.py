"""The two exporters of torch: the only file that knows them.

Up to opset 17 the older one (TorchScript) is used, from 18 on the one built on `torch.export`.
Both run the model in evaluation mode, alone in the process and without words of their own. The
initializers of the graph are the parameters of the model, of which nothing is copied, and copies of
its buffers, which a forward may write to.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import onnx
import onnx_ir as ir
import torch
from torch import nn

from .options import ExportOptions
from .plain import plain_operations
from .value_names import free_argument_names

FIRST_DYNAMO_OPSET = 18
SMALL_PARAMETER = 1024  # elements: a shape may be computed from them

# An exporter refuses to run beside itself; like `quiet`, it changes what belongs to the process.
_ALONE = threading.RLock()


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: ExportOptions
) -> ir.Model:
    """The ONNX graph of `model` called on the arguments, BatchNormalization and all kept."""
    run = _export_dynamo if is_dynamo(options) else _export_torchscript
    with _evaluating(model), quiet(), plain_operations(options.opset_version):
        with _buffers_kept(model):
            exported = run(model, args, kwargs, options)
        _separate_buffers(exported.graph, model)
    return exported


def is_dynamo(options: ExportOptions) -> bool:
    """Whether the newer exporter is the one for these options."""
    return options.opset_version >= FIRST_DYNAMO_OPSET


def _export_torchscript(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: ExportOptions
) -> ir.Model:
    names = _list(options.input_names)
    if kwargs and names is None:
        names = [*list(inspect.signature(model.forward).parameters)[: len(args)], *kwargs]
        names = free_argument_names(names, model)
    arguments: dict[str, Any] = {
        "dynamo": False,
        "opset_version": options.opset_version,
        "do_constant_folding": False,  # keeps BatchNormalization and the names of parameters
        "input_names": names,
        "output_names": _list(options.output_names),
        "dynamic_axes": copy.deepcopy(options.dynamic_axes),  # lists are rewritten
    }
    inputs = (*args, *kwargs.values())
    if inputs and isinstance(inputs[-1], dict):
        inputs = (*inputs, {})  # else it would be taken for keyword arguments
    with _positional(model, len(args), list(kwargs)):
        return _run_torchscript(model, inputs, arguments)


def _run_torchscript(
    model: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]
) -> ir.Model:
    buffer = io.BytesIO()  # of the nodes alone: a protobuf message ends at 2 GiB
    with _without_large_parameters():
        torch.onnx.export(model, inputs, buffer, export_params=False, **arguments)  # type: ignore[arg-type]
    exported = ir.from_proto(onnx.load_from_string(buffer.getvalue()))
    _bind_parameters(exported.graph, model)
    return exported


@contextmanager
def _without_large_parameters() -> Iterator[None]:
    """Lets the exporter infer shapes without the values of weights, which it would serialize."""
    infer: Any = torch._C._jit_pass_onnx_graph_shape_type_inference

    def of_small(graph: Any, parameters: dict[str, Any], opset_version: int) -> None:
        small = {k: v for k, v in parameters.items() if v.numel() <= SMALL_PARAMETER}
        infer(graph, small, opset_version)

    with mock.patch.object(torch._C, infer.__name__, of_small):
        yield


def _bind_parameters(graph: ir.Graph, model: nn.Module) -> None:
    """Turns the inputs that stand for tensors of `model` into initializers over them."""
    tensors = model.state_dict(keep_vars=True)
    for value in [v for v in graph.inputs if v.name in tensors]:
        graph.inputs.remove(value)
        value.const_value = ir.tensor_adapters.TorchTensor(
            tensors[str(value.name)].detach(), name=value.name
        )
        graph.register_initializer(value)


@contextmanager
def _positional(model: nn.Module, count: int, keywords: list[str]) -> Iterator[None]:
    """Lets `model` take keyword arguments by position: a trace cannot pass keyword-only ones."""
    if not keywords:
        yield
        return
    forward = model.forward

    def by_position(*values: Any) -> Any:
        return forward(*values[:count], **dict(zip(keywords, values[count:], strict=True)))

    replaced = model.__dict__.get("forward")
    model.forward = by_position
    try:
        yield
    finally:
        if replaced is None:
            del model.forward
        else:
            model.forward = replaced


def _export_dynamo(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: ExportOptions
) -> ir.Model:
    if not kwargs and args and isinstance(args[-1], dict):
        args = (*args, {})  # else it would be taken for keyword arguments
    program = torch.onnx.export(
        model,
        args,
        kwargs=kwargs,
        dynamo=True,
        opset_version=options.opset_version,
        optimize=False,  # keeps BatchNormalization, and equal nodes apart
        verbose=False,
        input_names=_list(options.input_names),
        output_names=_list(options.output_names),
        dynamic_axes=copy.deepcopy(options.dynamic_axes),  # type: ignore[arg-type]
    )
    assert program is not None
    graph = program.model.graph
    names = free_argument_names([str(value.name) for value in graph.inputs], model)
    for value, name in zip(graph.inputs, names, strict=True):
        value.name = name
    return program.model


def _list(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, as it is deployed; an exporter restores one mode for all."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undoes what a forward writes to buffers: the run of an exporter is none of the user's."""
    own = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    every = [b for _, buffers in own for b in buffers.values() if b is not None]
    values = {b: (b._version, b.clone()) for b in every if not b.is_inference()}
    try:
        yield
    finally:
        for module, buffers in own:
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, (version, before) in values.items():
                if buffer._version != version:
                    buffer.copy_(before)


def _separate_buffers(graph: ir.Graph, model: nn.Module) -> None:
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in graph.initializers:
            copied = ir.tensor_adapters.TorchTensor(buffer.detach().clone(), name=name)
            graph.initializers[name].const_value = copied


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' own warnings and notes from the user: none asks for an action."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    # The exporter prints the whole graph when it fails, whatever its verbosity.
    silent = mock.patch.object(torch._C, "_jit_onnx_log")
    with _ALONE, warnings.catch_warnings(), silent:
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
