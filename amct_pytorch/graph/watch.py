"""Which nodes of an exported graph belong to which module.

Nothing of the model is wrapped or renamed: hooks open a scope around the calls of the modules of
interest, and the node names of the older exporter carry the scope; the newer one writes the
module path into each node's metadata.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

_SCOPE = re.compile(r"amct_call_(\d+)/")


@dataclass
class Watch:
    """Follows the calls of the modules of interest while an exporter runs the model."""

    names: dict[nn.Module, str]  # the first path of each module
    aliases: dict[str, str]  # every path of such a module -> its first
    calls: list[str] = field(default_factory=list)  # module path by scope number

    @classmethod
    def of(cls, model: nn.Module, of_interest: Callable[[nn.Module], bool]) -> Watch:
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
