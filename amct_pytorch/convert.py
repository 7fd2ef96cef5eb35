"""Conversion of models that were quantized elsewhere: in training, as standard ONNX nodes."""

from __future__ import annotations

import os

from .export.graphs import graph_files, model_paths
from .export.model_file import load_model
from .export.qdq import read_qdq, upgraded
from .files import check_distinct, check_file_name, check_save_path, check_writable, write_files


def convert_qat_model(onnx_file: str, save_path: str) -> None:
    """Writes the deploy and the fake_quant ONNX model of one with QuantizeLinear nodes.

    Args:
        onnx_file: a model with QuantizeLinear and DequantizeLinear at the input and at the weight
            of Conv, ConvTranspose, Gemm or MatMul nodes, at both inputs of a MatMul, or at the
            input, the initial hidden state and both weights of LSTM or GRU nodes, as
            `torch.onnx.export` writes it from a model that was trained with fake quantization. It
            is not changed.
        save_path: `folder/prefix`; writes `<prefix>_deploy_model.onnx` and
            `<prefix>_fake_quant_model.onnx` (no prefix: `deploy_model.onnx`, ...).

    A layer with a quantized weight and a float input is left float, with a warning; the values of
    its weight are those on the grid. All other nodes stay as they are.

    Raises ValueError for a bad or missing model file; RuntimeError, with the name of the node, for
    quantization that has no deploy form and for a model without any; OSError for a folder that
    cannot be written.

    >>> convert_qat_model("trained.onnx", "results/net")
    Traceback (most recent call last):
    ValueError: onnx_file 'trained.onnx' is missing; write it with torch.onnx.export
    """
    check_file_name(onnx_file, "onnx_file")
    check_save_path(save_path)
    if not os.path.isfile(onnx_file):
        raise ValueError(f"onnx_file {onnx_file!r} is missing; write it with torch.onnx.export")
    paths = model_paths(save_path)
    check_distinct(onnx_file=onnx_file, **paths)
    for path in paths.values():
        check_writable(path)
    model = upgraded(load_model(onnx_file))
    records = read_qdq(model, onnx_file)
    write_files(graph_files(model, records, paths))
