"""Record files: what was learnt about each layer, as protobuf text (scale_offset_record_pytorch).

While calibration runs, comment lines at the top of the file tell how far each unfinished layer is,
so that a later step can name the layers and the batches that are missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from google.protobuf import text_format
from google.protobuf.text_encoding import CEscape

from ..config.messages import message_class
from ..files import write_files
from ..float32 import shortest
from ..suggest import did_you_mean
from .checks import RecordTarget, check_record, mistake
from .layer import FLOATS, REPEATED, LayerRecord

logger = logging.getLogger(__name__)

_PROGRESS = re.compile(r'# calibration: ("(?:[^"\\]|\\.)*") has seen (\d+) of (\d+) batches')
# What the place of a record needs: strings and comments as wholes, braces, names.
_TOKEN = re.compile(r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|#[^\n]*|[{}<>]|\w+""")
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
        or value, or a key twice.
        """
        with open(path, "rb") as file:
            content = file.read()
        try:
            return cls.parse(content.decode("utf-8-sig"), path)
        except UnicodeDecodeError as error:
            raise RuntimeError(f"{path}: not a text file in UTF-8 ({error})") from None

    @classmethod
    def parse(cls, text: str, source: str = "record") -> Records:
        """The records in the text of a file; `source` names it in errors, those of `load`."""
        progress = _read_progress(text)
        message = _parse(source, text)
        if not message.record:
            hint = _unfinished(progress) if progress else "calibrate the model, then try again"
            raise RuntimeError(f"{source}: expected at least one record, found none; {hint}")
        if message.prune_record:
            logger.warning("%s: prune_record is not used here and is not kept", source)
        layers: dict[str, LayerRecord] = {}
        for index, entry in enumerate(message.record):
            if not entry.key or not entry.HasField("value") or entry.key in layers:
                raise RuntimeError(_bad_entry(source, text, index, entry))
            if entry.HasField("kv_cache_value"):
                warning = '%s: layer "%s": kv_cache_value is not used here and is not kept'
                logger.warning(warning, source, entry.key)
            layers[entry.key] = _layer_record(entry.value)
        return cls(layers, progress, source)

    def dumps(self) -> str:
        """The text of the file: the bytes of protobuf's `text_format`, written faster."""
        lines = [
            f"# calibration: {json.dumps(layer)} has seen {seen} of {needed} batches\n"
            for layer, (seen, needed) in self.progress.items()
        ]
        for layer, record in self.layers.items():
            lines.append(f"record {{\n  key: {_quoted(layer)}\n  value {{\n")
            lines.extend(_value_lines(record))
            lines.append("  }\n}\n")
        return "".join(lines)

    def check_finished(self) -> None:
        """Raises RuntimeError that names every layer that calibration has not seen enough of."""
        if self.progress:
            raise RuntimeError(f"{self.source}: {_unfinished(self.progress)}; run the missing ones")

    def validate(self, targets: Mapping[str, RecordTarget]) -> None:
        """Raises at the first factor that is missing or does not fit the layers of `targets`.

        A layer whose record has no quantization factor (balance factors at most) is not quantized
        and is passed over. Raises RuntimeError for what is missing, unknown or of a wrong length;
        ValueError for an offset, scale or balance factor out of range or a wrong number of balance
        factors. Messages have the layer, the field, what was expected and what was found.
        """
        self.check_finished()
        for layer, record in self.layers.items():
            if layer not in targets:
                hint = did_you_mean(layer, targets)
                text = f"the model has no quantizable layer of this name{hint}"
                raise mistake(self.source, layer, "key", text)
            check_record(self.source, layer, record, targets[layer])

    def save(self, path: str, *, warn_replaced: bool = True) -> None:
        """Writes the file `path` at once or not at all; see `files.write_files` for errors."""
        write_files({path: self.dumps()}, warn_replaced=warn_replaced)


def _quoted(text: str) -> str:
    # Given str: releases before 5 read bytes as Latin-1. The stubs know of bytes only.
    escaped = CEscape(text, True)  # type: ignore[arg-type]
    return f'"{escaped}"'


def _value_lines(record: LayerRecord) -> Iterator[str]:
    for name in (f.name for f in fields(LayerRecord)):
        value = getattr(record, name)
        if value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)
        if name in FLOATS:
            texts = map(str, shortest(values))
        elif isinstance(value, bool):
            texts = map(str.lower, map(str, values))
        elif isinstance(value, str):
            texts = map(_quoted, values)
        else:
            texts = map(str, values)
        prefix = f"    {name}: "
        yield prefix + f"\n{prefix}".join(texts) + "\n" if values else ""


def _layer_record(value: Any) -> LayerRecord:
    present: dict[str, Any] = {
        descriptor.name: tuple(content) if descriptor.name in REPEATED else content
        for descriptor, content in value.ListFields()
    }
    return LayerRecord(**present)


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
    message = message_class("scale_offset_record_pytorch", "AMCTPytorchProto.ScaleOffsetRecord")()
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        line, column = error.GetLine() or 1, error.GetColumn() or 1
        reason = str(error).partition(" : ")[2] or str(error)
    lines = text.split("\n")
    offset = sum(len(previous) + 1 for previous in lines[: line - 1]) + column
    raise RuntimeError(
        f"{path}:{line}:{_layer_at(text, offset)} {reason} The file is cut off or was changed by "
        "hand: restore it, or calibrate again."
    )


def _bad_entry(path: str, text: str, index: int, entry: Any) -> str:
    starts = _record_starts(text)  # too few for the spelling `record: [{...}, {...}]`
    line = text.count("\n", 0, starts[index]) + 1 if starts[index:] else 1
    where = f"{path}:{line}:"
    if not entry.key:
        return f"{where} record {index + 1}: expected a key (the layer's name), found none"
    if not entry.HasField("value"):
        return f'{where} layer "{entry.key}": expected a value (its factors), found none'
    return f'{where} layer "{entry.key}": expected one record for each layer, found a second'


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
