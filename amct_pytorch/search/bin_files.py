"""Raw `.bin` inputs of a model: where their files are, and their tensors, read one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..suggest import did_you_mean

_FLOATS = ("float64", "float32", "float16")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DATA_TYPES = (*_FLOATS, *_INTEGERS, "bool")


@dataclass(frozen=True)
class BinInput:
    """One input of a model and its batches: one file each, in lexicographic order of the names."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    folder: str
    files: tuple[str, ...]

    def check_count(self, argument: str, needed: int) -> None:
        """Raises RuntimeError unless there are `needed` files; `argument` asked for them."""
        if len(self.files) < needed:
            raise RuntimeError(
                f"{argument}: expected at least {needed} .bin files in {self.folder!r}, "
                f"found {len(self.files)}"
            )

    def check_size(self, path: str) -> None:
        """Raises ValueError unless the file `path` has the bytes of one tensor."""
        found, expected = os.stat(path).st_size, math.prod(self.shape) * self.dtype.itemsize
        if found != expected:
            shape = ",".join(map(str, self.shape))
            raise ValueError(
                f"{path}: expected {expected} bytes ({self.name}: {self.dtype} {shape}), "
                f"got {found}"
            )

    def identity(self) -> str:
        """Changes when the files do: their names, sizes or times of modification."""
        stats = [(os.path.basename(path), os.stat(path)) for path in self.files]
        return repr(
            [self.shape, str(self.dtype), [(n, s.st_size, s.st_mtime_ns) for n, s in stats]]
        )

    def read(self, index: int) -> Tensor:
        """The tensor of batch `index`, on the CPU."""
        self.check_size(self.files[index])  # again: np.fromfile leaves out an incomplete element
        values = np.fromfile(self.files[index], self.dtype)
        if self.dtype == np.bool_:
            values = values.view(np.uint8) != 0  # any other byte than 0 and 1 is no valid bool
        return torch.from_numpy(values).reshape(self.shape)


def find_inputs(data_dir: str, input_shape: str, data_types: str) -> tuple[BinInput, ...]:
    """The inputs of `input_shape` with the files of their folders; sizes are checked, none is read.

    Raises TypeError for an argument that is no str or an unknown data type, ValueError for a
    mistake in `input_shape`, counts that differ or a file of another size, FileNotFoundError or
    NotADirectoryError for a folder, RuntimeError for a folder without .bin files.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b2.bin", "b10.bin", "notes.txt"):
    ...         np.zeros((1, 3), np.float32).tofile(os.path.join(folder, name))
    ...     (x,) = find_inputs(folder, "x:1,3", "float32")
    >>> x.name, x.shape, [os.path.basename(path) for path in x.files]
    ('x', (1, 3), ['b10.bin', 'b2.bin'])
    """
    arguments = {"data_dir": data_dir, "input_shape": input_shape, "data_types": data_types}
    for argument, text in arguments.items():
        if not isinstance(text, str):
            raise TypeError(f"{argument}: expected a str, got {type(text).__name__}")
    inputs = [_name_and_shape(entry) for entry in input_shape.split(";")]
    folders = _one_for_each(inputs, "data_dir", data_dir)
    dtypes = [_dtype(entry.strip()) for entry in _one_for_each(inputs, "data_types", data_types)]
    return tuple(
        _find(name, shape, dtype, folder)
        for (name, shape), dtype, folder in zip(inputs, dtypes, folders, strict=True)
    )


def check_equal_counts(inputs: Sequence[BinInput], argument: str) -> None:
    """Raises RuntimeError if the inputs have different numbers of files; `argument` was None."""
    if len({len(x.files) for x in inputs}) > 1:
        found = ", ".join(f"{len(x.files)} in {x.folder!r}" for x in inputs)
        raise RuntimeError(
            f"data_dir: expected as many .bin files for each input, found {found}; "
            f"add those that are missing or set {argument}"
        )


def _find(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], folder: str) -> BinInput:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.name.endswith(".bin") and e.is_file())
    except OSError as error:
        text = f"data_dir: {error.strerror}; expected a folder of .bin files"
        raise type(error)(error.errno, text, folder) from None
    found = BinInput(name, shape, dtype, folder, tuple(os.path.join(folder, n) for n in names))
    found.check_count("data_dir", 1)
    for path in found.files:
        found.check_size(path)
    return found


def _name_and_shape(entry: str) -> tuple[str, tuple[int, ...]]:
    name, _, text = (part.strip() for part in entry.rpartition(":"))
    if not name or not text:
        raise ValueError(f'input_shape: expected "name:n,c,h,w" for each input, got {entry!r}')
    dims = [dim.strip() for dim in text.split(",")]
    for dim in dims:
        if not (dim.isascii() and dim.isdigit() and int(dim)):
            raise ValueError(f"input_shape: {name}: expected positive integers, got {dim!r}")
    return name, tuple(map(int, dims))


def _one_for_each(inputs: Sequence[object], argument: str, text: str) -> list[str]:
    entries = text.split(";")
    if len(entries) != len(inputs):
        raise ValueError(
            f'{argument}: expected one entry, separated by ";", for each of the {len(inputs)} '
            f"inputs of input_shape, got {len(entries)}"
        )
    return entries


def _dtype(name: str) -> np.dtype[Any]:
    if name not in DATA_TYPES:
        hint = did_you_mean(name.lower(), DATA_TYPES)
        raise TypeError(f"data_types: expected one of {', '.join(DATA_TYPES)}, got {name!r}{hint}")
    return np.dtype(name)
