"""A module to put into a model by hand, where a tensor goes into a key or value cache."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ....config.kv_op import read_op_params
from ....files import check_file_name, check_writable
from ....layers.kv_cache import KVObserver
from ....records import KVCacheRecord, Records

logger = logging.getLogger(__name__)


class QuantCalibrationOp(nn.Module):
    """Returns the tensors it is called on; finds the factors to quantize them for a cache.

    Called as `op(layer_name, tensor)`, and for each name on its own: with the `batch_num`-th tensor
    of a name its factors are added to the record file. What else the file holds stays; factors of a
    name that it holds already are replaced with a warning. Tensors after that are ignored. One file
    may serve several of these modules in one process, not in several at once.

    Args:
        record_file: the file of factors; it is created with the first factors.
        quant_algo_params: a dictionary of

            - `act_algo`: "ifmr" (the default) or "hfmg"
            - `batch_num`: tensors to see of each name, > 0; 1
            - `asymmetric`: whether there is an offset; True
            - `quant_granularity`: "per_tensor" (the default), or "per_channel": a factor for every
              index of the last dimension
            - with "ifmr" `max_percentile`, `min_percentile`, `search_range`, `search_step`; with
              "hfmg" `num_of_bins`
            - `num_bits`: 8; `with_offset`: what `asymmetric` is where that is not given.
        quant_method: "kv_cache_quant".

    Raises TypeError for an option of a wrong type and RuntimeError for one that is unknown, or
    wrong, or of the other algorithm, and for a record file that does not parse. A call raises
    TypeError for a dtype other than float32, float16 and bfloat16; RuntimeError for NaN, infinity
    and, per channel, a number of channels that changes. Both name the layer.

    >>> import tempfile, torch
    >>> folder = tempfile.TemporaryDirectory()
    >>> op = QuantCalibrationOp(f"{folder.name}/record.txt", {"asymmetric": False})
    >>> op("k", torch.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    >>> Records.load(f"{folder.name}/record.txt").kv_cache["k"].offset
    (0,)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        record_file: str,
        quant_algo_params: dict[str, Any] | None = None,
        quant_method: Literal["kv_cache_quant"] = "kv_cache_quant",
    ) -> None:
        super().__init__()
        check_file_name(record_file, "record_file")
        if not isinstance(quant_algo_params, dict | None):
            kind = type(quant_algo_params).__name__
            raise TypeError(f"quant_algo_params: expected a dict or None, got {kind}")
        if not isinstance(quant_method, str):
            raise TypeError(f"quant_method: expected a str, got {type(quant_method).__name__}")
        if quant_method != "kv_cache_quant":
            raise RuntimeError(f'quant_method: expected "kv_cache_quant", got {quant_method!r}')
        self.params = read_op_params(quant_algo_params)
        check_writable(record_file)
        self.record_file = os.path.abspath(record_file)
        _existing(self.record_file)  # a damaged file is better found before a long run
        self._observers: dict[str, KVObserver] = {}
        self._unsaved: dict[str, KVCacheRecord] = {}  # more than one only if writing has failed

    def forward(self, layer_name: str, inputs: Tensor) -> Tensor:
        """`inputs`, which are counted for `layer_name` unless an exporter runs the model."""
        if not (torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()):
            self._observe(layer_name, inputs)
        return inputs

    def extra_repr(self) -> str:
        return f"record_file={self.record_file!r}, {self.params}"

    # In a compiled model the rest of the graph stays compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _observe(self, layer_name: str, inputs: Tensor) -> None:
        if not isinstance(layer_name, str) or not layer_name:
            raise TypeError(f"layer_name: expected a name, got {layer_name!r}")
        observer = self._observers.get(layer_name) or self._new_observer(layer_name)
        record = observer.observe(inputs)
        self._observers[layer_name] = observer
        if record is not None:
            self._unsaved[layer_name] = record
        if self._unsaved:
            self._save()

    def _new_observer(self, layer_name: str) -> KVObserver:
        params = self.params
        asymmetric = params.with_offset if params.asymmetric is None else params.asymmetric
        return KVObserver(
            layer_name,
            params,
            asymmetric=asymmetric,
            per_channel=params.per_channel,
            batch_num=params.batch_num,
        )

    def _save(self) -> None:
        records = _existing(self.record_file)
        for layer_name in self._unsaved.keys() & records.kv_cache:
            text = '%s: layer "%s": kv_cache_value is there already and is replaced'
            logger.warning(text, self.record_file, layer_name)
        records.with_kv_cache(self._unsaved).save(self.record_file, warn_replaced=False)
        self._unsaved = {}


def _existing(path: str) -> Records:
    """The records in the file, none if it is missing or empty."""
    if os.path.exists(path) and os.path.getsize(path):
        return Records.load(path)
    return Records({}, source=path)
