"""A ready-made evaluator for automatic calibration, for inputs that are raw `.bin` files."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .bin_files import check_equal_counts, find_inputs
from .evaluator import AutoCalibrationEvaluatorBase
from .labels import Labels, class_indices, top1
from .outputs import Outputs, likeness, tensors_of

logger = logging.getLogger(__name__)


class ModelEvaluator(AutoCalibrationEvaluatorBase):
    """Feeds folders of `.bin` files to a model and judges what comes out.

    data_dir:    a folder for each input, separated by ";"; the names that end in .bin are used in
                 lexicographic order, one file per batch
    input_shape: "name:n,c,h,w;name2:..."; the inputs are given to the model by position
    data_types:  a type for each input, separated by ";": float64/32/16, int8/16/32/64,
                 uint8/16/32/64 or bool
    batch_num:   the batches of `calibration`; None for all files
    iterations:  the batches of `evaluate`; None for all files
    labels:      the class of each sample in the order of the files: 1-d integers, or the path of a
                 text file with one per line
    tolerance:   the largest loss that `metric_eval` is satisfied with

    With labels the metric is the top-1 accuracy; without, the outputs, which are then compared with
    those of the float model: by direction alone, so a rescaled output is no loss.

    Here the files are listed, their sizes checked and the labels read; a batch is read when its
    turn comes. Raises TypeError or ValueError for a wrong argument or a file of another size,
    FileNotFoundError or NotADirectoryError for a folder, OSError for the file of labels,
    RuntimeError for too few files, or for inputs with different numbers of files where the count
    is None.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in (("a.bin", 1), ("b.bin", 2)):
    ...         np.full((1, 3), value, np.float32).tofile(os.path.join(folder, name))
    ...     evaluator = ModelEvaluator(folder, "x:1,3", "float32")
    ...     original, new = evaluator.evaluate(nn.Identity()), evaluator.evaluate(nn.Softplus())
    >>> original
    ((tensor([[1., 1., 1.]]),), (tensor([[2., 2., 2.]]),))
    >>> evaluator.metric_eval(original, new)
    (True, 0.0)
    """

    def __init__(
        self,
        data_dir: str,
        input_shape: str,
        data_types: str,
        *,
        batch_num: int | None = None,
        iterations: int | None = None,
        labels: Labels | None = None,
        tolerance: float = 0.01,
    ) -> None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
            raise TypeError(f"tolerance: expected a number, got {type(tolerance).__name__}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance: expected a finite number >= 0, got {tolerance}")
        self._tolerance = tolerance
        self._inputs = find_inputs(data_dir, input_shape, data_types)
        self._batch_num = self._count("batch_num", batch_num)
        self._iterations = self._count("iterations", iterations)
        self._labels = None if labels is None else class_indices(labels)
        self.version = self._identity()

    def calibration(self, model: nn.Module, batch_num: int | None = None) -> None:
        """Runs `model` on the first `batch_num` batches, by default those of the constructor.

        Raises TypeError or ValueError unless it is None or an int > 0, RuntimeError for too few
        files.
        """
        for _ in self._run(model, self._count("batch_num", batch_num, self._batch_num)):
            pass

    def evaluate(self, model: nn.Module, iterations: int | None = None) -> Outputs | float:
        """The metric of `model` over `iterations` batches, by default those of the constructor.

        With labels the share of samples whose class has the largest value in the first output,
        of shape (samples, classes); a sample with NaN counts as wrong. Without labels, a tuple of
        the output tensors on the CPU for each batch: those of tuples, lists and dicts, nested or
        not, in their order.

        Raises as `calibration` does; also TypeError if the output holds no tensor, ValueError if
        the first is not (samples, classes), or if there are fewer labels than samples.
        """
        count = self._count("iterations", iterations, self._iterations)
        outputs = (tensors_of(output) for output in self._run(model, count))
        if self._labels is None:  # copies: a model may use the memory of an output again
            return tuple(tuple(x.detach().to("cpu", copy=True) for x in batch) for batch in outputs)
        hits = seen = 0
        for batch, (scores, *_) in enumerate(outputs):
            classes = top1(scores)
            needed = seen + len(classes) * (count - batch)  # the other batches have this shape too
            if needed > len(self._labels):
                found = len(self._labels)
                raise ValueError(f"labels: expected one for each of {needed} samples, got {found}")
            hits += int((classes == self._labels[seen : seen + len(classes)]).sum())
            seen += len(classes)
        return hits / seen

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        """Whether the loss is at most `tolerance`, and the loss.

        With labels it is the accuracy that is lost, without labels 1 - the mean likeness of the
        outputs: the cosine in 0..1 of floating tensors, the share of equal elements of others.
        A loss of NaN does not satisfy. Raises ValueError if batches, outputs or shapes differ.
        """
        if self._labels is None:
            loss = 1 - likeness(original_metric, new_metric)
        else:  # rounded: 0.9 - 0.89 is above 0.01 in floating point
            loss = round(float(original_metric) - float(new_metric), 12)
        return loss <= self._tolerance, loss

    def _identity(self) -> str:
        """A search that was stopped does not go on with other data."""
        classes = None if self._labels is None else self._labels.tolist()
        parts = [self._batch_num, self._iterations, classes, *(x.identity() for x in self._inputs)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _count(self, argument: str, value: int | None, default: int | None = None) -> int:
        """`value`, else `default`, else the number of files."""
        if value is None and default is not None:
            return default
        if value is None:
            check_equal_counts(self._inputs, argument)
            return len(self._inputs[0].files)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{argument}: expected an int, got {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{argument}: expected an int > 0, got {value}")
        for x in self._inputs:
            x.check_count(argument, value)
        return value

    def _run(self, model: nn.Module, count: int) -> Iterator[object]:
        """What `model` returns for each of the first `count` batches."""
        if model.training:
            logger.warning("the model is in training mode; call model.eval() before")
        place = next(itertools.chain(model.parameters(), model.buffers()), None)
        device = torch.device("cpu") if place is None else place.device
        for index in range(count):
            inputs = [x.read(index).to(device) for x in self._inputs]
            with torch.no_grad():  # not around the yield: there the caller's code would run in it
                output = model(*inputs)
            yield output
