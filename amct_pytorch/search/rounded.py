"""Weights that AdaRound has rounded, beside the records that they belong to, in one text.

A record has the scales of weights and not how each weight is rounded. A search keeps its factors as
text, in its journal too, and goes on from there in another process; so the weights are in that
text, as comments, which a reader of records passes over.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

_LINE = re.compile(r'^# rounded: ("(?:[^"\\]|\\.)*") (\S+)\n', re.MULTILINE)


def with_rounded(record: str, weights: Mapping[str, Tensor]) -> str:
    """The text `record` and the `weights` of layers by name.

    >>> text = with_rounded('record { key: "fc" }', {"fc": torch.ones(2, 3)})
    >>> rounded_weights(text, nn.ModuleDict({"fc": nn.Linear(3, 2)}))["fc"].sum()
    tensor(6.)
    """
    lines = [f"# rounded: {json.dumps(name)} {_packed(w)}\n" for name, w in weights.items()]
    return "".join(lines) + record


def rounded_weights(text: str, model: nn.Module) -> dict[str, Tensor]:
    """The weights in a text of `with_rounded`, as `model` has those of the same layers."""
    return {
        name: _unpacked(packed, model.get_submodule(name).weight)  # type: ignore[arg-type]
        for name, packed in ((json.loads(line[1]), line[2]) for line in _LINE.finditer(text))
    }


def _packed(weight: Tensor) -> str:
    values = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()


def _unpacked(packed: str, like: Tensor) -> Tensor:
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return torch.from_numpy(values.copy()).view(like.dtype).reshape(like.shape).to(like.device)
