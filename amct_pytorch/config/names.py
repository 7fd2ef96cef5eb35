"""Which names a configuration may use, and what to say about the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from ..capability import BY_KIND
from ..graph import ModelFacts
from ..suggest import did_you_mean
from .limits import types_that
from .problems import Problem, shown


def quantizable_layers(source: str, facts: ModelFacts, global_keys: Collection[str]) -> list[str]:
    """The layers that a generated configuration lists, those to skip included.

    Raises ValueError if there is none, or if a name is a global key.
    """
    names = [name for name, layer in facts.layers.items() if layer.reason is None]
    if not names:
        why = [f"{name} ({layer.kind}): {layer.reason}" for name, layer in facts.layers.items()]
        lines = "\n".join(why) or f"it has no module of the types {', '.join(facts.kinds)}"
        text = "No supported layers: the model has no layer that can be quantized"
        raise ValueError(f"{source}: {text}:\n{lines}")
    check_no_global_key(source, names, global_keys)
    return names


def check_no_global_key(source: str, names: Iterable[str], global_keys: Collection[str]) -> None:
    """Raises ValueError if a layer that a generated configuration lists has such a name."""
    for name in names:
        if name in global_keys:
            text = "this layer has the name of a global key of the configuration; rename the module"
            raise ValueError(f"{source}: {name}: {text}")


def check_not_all(source: str, names: Collection[str], skipped: Collection[str]) -> None:
    """Raises ValueError if nothing of `names` is left."""
    if set(names) <= set(skipped):
        text = "all layers that can be quantized are skipped"
        raise ValueError(f"{source}: {text}: {', '.join(names)}")


def checked_skips(skip_layers: object, facts: ModelFacts) -> set[str]:
    """The names in the argument `skip_layers`; raises TypeError or ValueError if it is wrong."""
    names = [] if skip_layers is None else skip_layers
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"skip_layers: expected a list of str, got {skip_layers!r}")
    repeated = why_repeated(names)
    for index, name in enumerate(names):
        if reason := why_not_layer(name, facts) or repeated.get(index):
            raise ValueError(f"skip_layers[{index}]: {reason}")
    return set(names)


def why_not_layer(name: str, facts: ModelFacts) -> str:
    """What to say if `name` is not a layer of a quantizable type, or an empty text."""
    if name in facts.layers:
        return ""
    if name in facts.modules:
        types = ", ".join(facts.kinds)
        if facts.modules[name] in facts.kinds:
            return f"expected the first name of a module, got {shown(name)}, another name of it"
        return f"expected a layer of type {types}, got {shown(name)}, a {facts.modules[name]}"
    expected = "expected the name of a layer of the model"
    return f"{expected}, got {shown(name)}{did_you_mean(name, facts.layers)}"


def why_not_type(kind: str, facts: ModelFacts) -> str:
    """What to say if `kind` is not a quantizable type, or an empty text."""
    if kind in facts.kinds:
        return ""
    hint = did_you_mean(kind, facts.kinds)
    return f"expected one of {', '.join(facts.kinds)}, got {shown(kind)}{hint}"


def why_repeated(names: Sequence[str]) -> dict[int, str]:
    """What to say of the names that have come before, by their indices.

    >>> why_repeated(["conv", "fc", "conv"])
    {2: 'expected each name once, got "conv" twice'}
    """
    first: dict[str, int] = {}
    return {
        index: f"expected each name once, got {shown(name)} twice"
        for index, name in enumerate(names)
        if first.setdefault(name, index) != index
    }


def refused_key(key: str, facts: ModelFacts, global_keys: Collection[str]) -> Problem | None:
    """The mistake if `key`, no global key, does not name a layer that can be quantized."""
    if key in facts.layers:
        layer = facts.layers[key]
        text = f"this {layer.kind} cannot be quantized: {layer.reason}"
        return None if layer.reason is None else Problem((key,), text)
    if key in facts.modules:
        return Problem((key,), why_not_layer(key, facts))
    text = f"expected the name of a layer or a global key, got {shown(key)}"
    return Problem((key,), text + did_you_mean(key, [*facts.layers, *global_keys]))


def fusion_problems(names: Sequence[str], facts: ModelFacts) -> Iterator[Problem]:
    """The mistakes in `skip_fusion_layers`."""
    repeated = why_repeated(names)
    for index, name in enumerate(names):
        text = why_not_layer(name, facts) or repeated.get(index)
        if not text and not BY_KIND[facts.layers[name].kind].fusion:
            fusable = types_that(lambda capability: capability.fusion)
            kind = facts.layers[name].kind
            text = f"expected a layer of type {fusable}, got {shown(name)}, a {kind}"
        if text:
            yield Problem(("skip_fusion_layers", index), text)
