"""Record files: what was learnt about each layer, as protobuf text (scale_offset_record_pytorch).

An entry has the factors of a quantized layer, those of the cache that the layer fills, or both.
While calibration runs, comment lines at the top of the file tell how far each unfinished layer is,
so that a later step can name the layers and the batches that are missing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from google.protobuf import text_format
from google.protobuf.text_encoding import CEscape

from ..config.messages import message_class
from ..files import read_text, write_files
from ..float32 import shortest
from ..suggest import did_you_mean
from .checks import RecordTarget, check_record, mistake
from .diff import RecordsDiff, compare
from .kv_cache import KVCacheRecord
from .layer import FLOATS, LayerRecord
from .plain_text import read_plain

_PROGRESS = re.compile(
    r'# calibration: ("(?:[^"\\]|\\.)*") has seen (\d{1,18}) of (\d{1,18}) batches'
)
# What the place of a record needs: strings and comments as wholes, braces, names.
_TOKEN = re.compile(r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|#[^\n]*|[{}<>]|\w+""")
_MOST_SHOWN = 200  # characters of a parser's message
_KEY = re.compile(r'\bkey\s*:\s*("(?:\\.|[^"\\\n])*")')


@dataclass(frozen=True)
class Records(Mapping[str, LayerRecord]):
    """The records of a model's layers, in file order, and how far unfinished layers are.

    >>> print(Records({"conv": LayerRecord(offset_w=(0, 0))}, {"conv": (1, 2)}).dumps(), end="")
    # calibration: "conv" has seen 1 of 2 batches
    record {
      key: "conv"
      value {
        offset_w: 0
        offset_w: 0
      }
    }
    """

    layers: Mapping[str, LayerRecord]
    progress: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # (seen, needed)
    source: str = field(default="record", compare=False)  # the file, for messages
    kv_cache: Mapping[str, KVCacheRecord] = field(default_factory=dict)
    prune: str = ""  # the text of what channel pruning has recorded: kept, not used

    def __getitem__(self, layer: str) -> LayerRecord:
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def load(cls, path: str) -> Records:
        """Reads the record file `path`.

        Raises FileNotFoundError (or another OSError) if it cannot be read; RuntimeError, with the
        file, the line and the layer, if it does not parse or has no record, an entry without key
        or factors, a key twice, or a cache with unequal numbers of scales and offsets.
        """
        return cls.parse(read_text(path, RuntimeError), path)

    @classmethod
    def parse(cls, text: str, source: str = "record") -> Records:
        """The records in the text of a file; `source` names it in errors, those of `load`."""
        progress = _read_progress(text)
        message = _parse(source, text)
        if not message.record:
            hint = _unfinished(progress) if progress else "calibrate the model, then try again"
            raise RuntimeError(f"{source}: expected at least one record, found none; {hint}")
        layers: dict[str, LayerRecord] = {}
        kv_cache: dict[str, KVCacheRecord] = {}
        for index, entry in enumerate(message.record):
            if reason := _why_not_entry(entry, {*layers, *kv_cache}):
                raise RuntimeError(_bad_entry(source, text, index, entry, reason))
            if entry.HasField("value"):
                layers[entry.key] = LayerRecord(**_present(entry.value))
            if entry.HasField("kv_cache_value"):
                kv_cache[entry.key] = KVCacheRecord(**_present(entry.kv_cache_value))
        del message.record[:]
        prune = text_format.MessageToString(message, as_utf8=True)
        return cls(layers, progress, source, kv_cache, prune)

    def dumps(self) -> str:
        """The text of the file: the bytes of protobuf's `text_format`, written faster."""
        lines = [
            f"# calibration: {json.dumps(layer)} has seen {seen} of {needed} batches\n"
            for layer, (seen, needed) in self.progress.items()
        ]
        for layer in {**self.layers, **self.kv_cache}:
            lines.append(f"record {{\n  key: {_quoted(layer)}\n")
            if layer in self.layers:
                lines.extend(("  value {\n", *_value_lines(self.layers[layer]), "  }\n"))
            if layer in self.kv_cache:
                kv_lines = _value_lines(self.kv_cache[layer])
                lines.extend(("  kv_cache_value {\n", *kv_lines, "  }\n"))
            lines.append("}\n")
        return "".join((*lines, self.prune))

    def check_finished(self) -> None:
        """Raises RuntimeError that names every layer that calibration has not seen enough of."""
        if self.progress:
            raise RuntimeError(f"{self.source}: {_unfinished(self.progress)}; run the missing ones")

    def check_quantized(self) -> None:
        """Raises RuntimeError unless the file is that of a finished quantization of layers."""
        self.check_finished()
        if self.kv_cache and not self.layers:
            raise RuntimeError(
                f"{self.source}: expected the factors of quantized layers, found only those of KV "
                f"caches (of {', '.join(self.kv_cache)}); pass the record_file of quantize_model"
            )

    def validate(self, targets: Mapping[str, RecordTarget]) -> None:
        """Raises at the first factor that is missing or does not fit the layers of `targets`.

        A layer whose record has no quantization factor (balance factors at most) is not quantized
        and is passed over. Raises RuntimeError for what is missing, unknown or of a wrong length;
        ValueError for an offset, scale or balance factor out of range or a wrong number of balance
        factors. Messages have the layer, the field, what was expected and what was found.
        """
        self.check_quantized()
        for layer, record in self.layers.items():
            if layer not in targets:
                hint = did_you_mean(layer, targets)
                text = f"the model has no quantizable layer of this name{hint}"
                raise mistake(self.source, layer, "key", text)
            check_record(self.source, layer, record, targets[layer])

    def with_kv_cache(self, kv_cache: Mapping[str, KVCacheRecord]) -> Records:
        """The same records with the factors of more caches, or other ones of the same."""
        return replace(self, kv_cache={**self.kv_cache, **kv_cache})

    def diff(self, other: Records, rtol: float = 0.0) -> RecordsDiff:
        """What `other` has differently: false if nothing, else iterable and good to print.

        Floats count as alike if they differ by at most `rtol` of the larger of both.

        >>> first = Records({"conv": LayerRecord(0.024, -8), "fc": LayerRecord(0.1)})
        >>> second = Records({"conv": LayerRecord(0.025, -8)})
        >>> print(first.diff(second))
        conv.scale_d: 0.024 -> 0.025 (+4.17 %)
        fc: only in the first
        >>> bool(first.diff(first))
        False
        """
        return RecordsDiff(tuple(compare(self._fields(), other._fields(), rtol)))

    def _fields(self) -> dict[str, dict[str, Any]]:
        """All that is known, by layer; under "" what is of none."""
        layers: dict[str, dict[str, Any]] = {"": {"prune_record": self.prune} if self.prune else {}}
        for layer, record in self.layers.items():
            layers[layer] = _contents(record) or {"value": "empty"}
        for layer, cache in self.kv_cache.items():
            contents = _contents(cache) or {"": "empty"}
            named = {f"kv_cache_value.{name}".strip("."): v for name, v in contents.items()}
            layers.setdefault(layer, {}).update(named)
        for layer, (seen, needed) in self.progress.items():
            layers.setdefault(layer, {})["calibration"] = f"{seen} of {needed} batches"
        return layers

    def save(self, path: str, *, warn_replaced: bool = True) -> None:
        """Writes the file `path` at once or not at all; see `files.write_files` for errors."""
        write_files({path: self.dumps()}, warn_replaced=warn_replaced)


def _quoted(text: str) -> str:
    # Given str: releases before 5 read bytes as Latin-1. The stubs know of bytes only.
    escaped = CEscape(text, True)  # type: ignore[arg-type]
    return f'"{escaped}"'


def _contents(record: LayerRecord | KVCacheRecord) -> dict[str, Any]:
    """The fields that are present, in the order of the file."""
    values = ((f.name, getattr(record, f.name)) for f in fields(record))
    return {name: value for name, value in values if value is not None and value != ()}


def _value_lines(record: LayerRecord | KVCacheRecord) -> Iterator[str]:
    for name, value in _contents(record).items():
        values = value if isinstance(value, tuple) else (value,)
        if name in (*FLOATS, "scale"):
            texts = map(str, shortest(values))
        elif isinstance(value, bool):
            texts = map(str.lower, map(str, values))
        elif isinstance(value, str):
            texts = map(_quoted, values)
        else:
            texts = map(str, values)
        prefix = f"    {name}: "
        yield prefix + f"\n{prefix}".join(texts) + "\n"


def _present(value: Any) -> dict[str, Any]:
    """The fields of a message that are there."""
    return {
        descriptor.name: content if isinstance(content, str | int | float) else tuple(content)
        for descriptor, content in value.ListFields()
    }


def _read_progress(text: str) -> dict[str, tuple[int, int]]:
    progress = {}
    for line in text.split("\n"):
        if line.strip() and not line.startswith("#"):
            break
        if match := _PROGRESS.fullmatch(line.rstrip()):
            with contextlib.suppress(json.JSONDecodeError):  # a comment by hand
                progress[json.loads(match[1])] = (int(match[2]), int(match[3]))
    return progress


def _unfinished(progress: Mapping[str, tuple[int, int]]) -> str:
    parts = (f'"{layer}" has seen {seen} of {needed}' for layer, (seen, needed) in progress.items())
    return f"calibration is unfinished: {', '.join(parts)} batches"


def _parse(path: str, text: str) -> Any:
    new = message_class("scale_offset_record_pytorch", "AMCTPytorchProto.ScaleOffsetRecord")
    if read_plain(text, message := new()):
        return message
    try:
        return text_format.Parse(text, new())
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        reason = str(error).partition(" : ")[2] or str(error)
    lines = text.split("\n")
    offset = sum(len(previous) + 1 for previous in lines[: line - 1]) + column
    if len(reason) > _MOST_SHOWN:  # it has the whole line in it
        reason = f"... {reason[-_MOST_SHOWN:]}"
    raise RuntimeError(
        f"{path}:{line}:{_layer_at(text, offset)} {reason} The file is cut off or was changed by "
        "hand: restore it, or calibrate again."
    )


def _why_not_entry(entry: Any, known: Collection[str]) -> str:
    """What is wrong with an entry as a whole, or an empty text."""
    if not entry.key:
        return "expected a key (the layer's name), found none"
    if not entry.HasField("value") and not entry.HasField("kv_cache_value"):
        return "expected a value (its factors), found none"
    if entry.key in known:
        return "expected one record for each layer, found a second"
    scales, offsets = len(entry.kv_cache_value.scale), len(entry.kv_cache_value.offset)
    if scales != offsets:
        return f"kv_cache_value.offset: expected as many as scale ({scales}), found {offsets}"
    return ""


def _bad_entry(path: str, text: str, index: int, entry: Any, reason: str) -> str:
    starts = _record_starts(text)  # too few for the spelling `record: [{...}, {...}]`
    line = text.count("\n", 0, starts[index]) + 1 if starts[index:] else 1
    which = f'layer "{entry.key}"' if entry.key else f"record {index + 1}"
    return f"{path}:{line}: {which}: {reason}"


def _record_starts(text: str) -> list[int]:
    """Where each record of the file begins, as far as its braces are in order."""
    starts, depth = [], 0
    for token in _TOKEN.finditer(text):
        if token[0] in "{<":
            depth += 1
        elif token[0] in "}>":
            depth -= 1
        elif token[0] == "record" and depth == 0:
            starts.append(token.start())
    return starts


def _layer_at(text: str, offset: int) -> str:
    """` layer "name":` for the record that `offset` is in, or nothing if it has no key."""
    starts = [start for start in _record_starts(text) if start < offset]
    key = _KEY.search(text, starts[-1]) if starts else None
    return f" layer {key[1]}:" if key else ""
