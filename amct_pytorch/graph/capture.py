"""The capture: one float ONNX export of a model, with the nodes that each module made.

This is the only file that knows torch's exporters. Up to opset 17 the older one (TorchScript) is
used, from 18 on the one built on `torch.export`. Nothing of the model is wrapped or renamed:
hooks open a scope around the calls of the modules of interest, and the node names of the older
exporter carry the scope; the newer one writes the module path into each node's metadata.
"""

from __future__ import annotations

import ast
import copy
import inspect
import io
import itertools
import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import nn

from .capture_error import explain
from .options import ExportOptions, split_input_data
from .padding import fold_pad, write_out_padding
from .plain import plain_operations

FIRST_DYNAMO_OPSET = 18
# A protobuf message ends at 2 GiB: above this many parameter bytes the export goes through files.
IN_MEMORY_LIMIT = 1_900_000_000

# An exporter refuses to run beside itself; like _quiet, it changes what belongs to the process.
_ALONE = threading.RLock()
_SCOPE = re.compile(r"amct_call_(\d+)/")


@dataclass(frozen=True)
class Capture:
    """An exported model and, per path of a module of interest that ran, the nodes it made."""

    model: ir.Model
    nodes: dict[str, list[ir.Node]]


def capture(
    model: nn.Module,
    input_data: object,
    options: ExportOptions,
    of_interest: Callable[[nn.Module], bool],
) -> Capture:
    """Exports `model` called on `input_data`; RuntimeError with the user's own line if it fails."""
    args, kwargs = split_input_data(input_data)
    watch = _Watch.of(model, of_interest)
    dynamo = options.opset_version >= FIRST_DYNAMO_OPSET
    try:
        with watch.hooks(), _evaluating(model), _quiet(), plain_operations(options.opset_version):
            export = _export_dynamo if dynamo else _export_torchscript
            exported = export(model, args, kwargs, options)
    except Exception as error:
        raise RuntimeError(explain(error, model, args, kwargs)) from error
    nodes = watch.nodes_by_metadata(exported) if dynamo else watch.nodes_by_scope(exported)
    _separate_equal_initializers(exported.graph)
    write_out_padding(exported.graph)
    _fold_own_padding(nodes)
    _drop_exporter_notes(exported)
    with _quiet():
        common.ShapeInferencePass()(exported)
        fold_constants(exported, onnx_shape_inference=False)
        common.RemoveUnusedNodesPass()(exported)
    alive = set(exported.graph)
    nodes = {name: [node for node in many if node in alive] for name, many in nodes.items()}
    return Capture(exported, nodes)


# ---- the two exporters ----


def _export_torchscript(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: ExportOptions
) -> ir.Model:
    names = _list(options.input_names)
    if kwargs and names is None:
        names = [*list(inspect.signature(model.forward).parameters)[: len(args)], *kwargs]
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
    tensors = itertools.chain(model.parameters(), model.buffers())
    if sum(t.numel() * t.element_size() for t in tensors) <= IN_MEMORY_LIMIT:
        buffer = io.BytesIO()
        torch.onnx.export(model, inputs, buffer, **arguments)  # type: ignore[arg-type]
        return ir.from_proto(onnx.load_from_string(buffer.getvalue()))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(model, inputs, path, **arguments)
        exported = ir.load(path)
        ir.external_data.load_to_model(exported)
        return exported


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
def _quiet() -> Iterator[None]:
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


# ---- which nodes belong to which module ----


@dataclass
class _Watch:
    """Follows the calls of the modules of interest while an exporter runs the model."""

    names: dict[nn.Module, str]  # the first path of each module
    aliases: dict[str, str]  # every path of such a module -> its first
    calls: list[str] = field(default_factory=list)  # module path by scope number

    @classmethod
    def of(cls, model: nn.Module, of_interest: Callable[[nn.Module], bool]) -> _Watch:
        names = {module: name for name, module in model.named_modules() if of_interest(module)}
        aliases = {
            path: names[module]
            for path, module in model.named_modules(remove_duplicate=False)
            if module in names
        }
        return cls(names, aliases)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        def before(module: nn.Module, args: Any) -> None:
            state: Any = torch._C._get_tracing_state()
            if state is not None:
                state.push_scope(f"amct::amct_call_{len(self.calls)}")
                self.calls.append(self.names[module])

        def after(module: nn.Module, args: Any, output: Any) -> None:
            state: Any = torch._C._get_tracing_state()
            if state is not None:
                state.pop_scope()

        with ExitStack() as stack:
            for module in self.names:
                # Around the module's own hooks: what those compute belongs to the module too.
                pre = module.register_forward_pre_hook(before, prepend=True)
                post = module.register_forward_hook(after, always_call=True)
                stack.callback(pre.remove)
                stack.callback(post.remove)
            yield

    def nodes_by_scope(self, model: ir.Model) -> dict[str, list[ir.Node]]:
        """By the scopes in the names of nodes; takes the scopes out of all names."""
        found: dict[str, list[ir.Node]] = {}
        for node in model.graph:
            if scopes := _SCOPE.findall(node.name or ""):
                found.setdefault(self.calls[int(scopes[-1])], []).append(node)
        _take_scopes_out(list(model.graph))
        _take_scopes_out([value for node in model.graph for value in node.outputs])
        return found

    def nodes_by_metadata(self, model: ir.Model) -> dict[str, list[ir.Node]]:
        """By the module path in the metadata of nodes."""
        found: dict[str, list[ir.Node]] = {}
        for node in model.graph:
            scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
            owners = [self.aliases[scope] for scope in scopes if scope in self.aliases]
            if owners:
                found.setdefault(owners[-1], []).append(node)
        return found


def _take_scopes_out(items: Sequence[ir.Node | ir.Value]) -> None:
    """Drops the scope from names, with a number at the end where two names would meet."""
    taken = {item.name for item in items if not _SCOPE.search(item.name or "")}
    for item in items:
        if not _SCOPE.search(item.name or ""):
            continue
        plain = unique = _SCOPE.sub("", item.name or "")
        numbers = itertools.count(1)
        while unique in taken:
            unique = f"{plain}_{next(numbers)}"
        taken.add(unique)
        item.name = unique


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


def _fold_own_padding(nodes: dict[str, list[ir.Node]]) -> None:
    """Takes the Pad that is written for padding="same" into the convolution it belongs to."""
    for own in nodes.values():
        for node in own:
            source = node.inputs[0] if node.op_type == "Conv" else None
            if source is not None and source.producer() in own:
                fold_pad(node)


def _drop_exporter_notes(model: ir.Model) -> None:
    """Removes what the newer exporter notes in every node: among it lines and paths of the user."""
    for item in (model, model.graph, *model.graph, *model.graph.initializers.values()):
        item.metadata_props.clear()
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        value.metadata_props.clear()
