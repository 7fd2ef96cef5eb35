"""DMQ balancing before quantization: the verb that finds the factors of the layers' inputs."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from .files import check_distinct, check_file_name, check_writable, write_files
from .graph.options import ExportOptions
from .steps import check_types, copy_model, prepare
from .transforms.dmq import BalanceKeeper, balanced_layers, insert_probes
from .transforms.insert import keep_record


def quantize_preprocess(
    config_file: str,
    record_file: str,
    model: nn.Module,
    input_data: Any,
    *,
    opset_version: int = 13,
) -> nn.Module:
    """Returns a copy of `model` that finds the DMQ balance factors while it runs.

    Run the returned model on `batch_num` batches; with the last one the record file has the
    factors, and `quantize_model` with the same files can follow. The outputs are those of the float
    model with BatchNorms folded (if `do_fusion`): nothing is balanced or quantized yet.

    Args:
        config_file: the configuration from `create_quant_config`, with `dmq_balancer_param` for the
            layers to balance.
        record_file: the file of factors to write.
        model: the trained float model; it is not changed.
        input_data: as for `create_quant_config`.
        opset_version: the ONNX opset to trace with, 11 to 23.

    Raises FileNotFoundError for a missing `config_file`; RuntimeError if no enabled layer has
    `dmq_balancer_param`, for a model that was processed already, and when the model runs for NaN or
    infinity in the input of a layer and for factors that are out of range, both with the layer and
    the batch; TypeError for an input that is not float32, float16 or bfloat16.

    Example::

        probing = amct.quantize_preprocess("config.json", "record.txt", model, images)
        for batch in batches:
            probing(batch)
        calibrated = amct.quantize_model(
            "config.json", "modified.onnx", "record.txt", model, images
        )
    """
    check_types("quantize_preprocess", model=(model, nn.Module))
    check_file_name(config_file, "config_file", empty=IsADirectoryError)
    check_file_name(record_file, "record_file")
    check_distinct(config_file=config_file, record_file=record_file)
    options = ExportOptions(opset_version=opset_version)
    if not os.path.exists(config_file):
        raise FileNotFoundError(
            f"config_file {config_file!r} is missing; write it with create_quant_config"
        )
    check_writable(record_file)

    model = copy_model(model)
    prepared = prepare(config_file, model, input_data, options)
    strengths = balanced_layers(prepared.layers)
    if not strengths:
        raise RuntimeError(
            f"{config_file}: expected dmq_balancer_param in at least one layer with quant_enable, "
            "found none: there is nothing to balance; add it, or go on with quantize_model"
        )
    balancing = insert_probes(model, strengths, prepared.config.batch_num)
    keeper = BalanceKeeper(os.path.abspath(record_file), {}, balancing)
    keep_record(model, keeper)
    write_files({record_file: keeper.records().dumps()})
    return model
