"""Reading and writing ONNX files; large ones keep their tensors in one file beside them."""

from __future__ import annotations

import os
import tempfile

import onnx_ir as ir

# Serialized models above this many bytes get external data (protobuf ends at 2 GiB).
EXTERNAL_DATA_LIMIT = 2_000_000_000
# Smaller tensors stay inside: shape inference reads axes and shapes, and not from another file.
SMALLEST_EXTERNAL = 256


def load_model(path: str) -> ir.Model:
    """Reads an ONNX file with its external data.

    Raises FileNotFoundError if it is missing and ValueError if it is not an ONNX model; both name
    the file.
    """
    try:
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    except FileNotFoundError as error:
        missing = error.filename or path
        raise FileNotFoundError(error.errno, "file of the ONNX model not found", missing) from None
    except IsADirectoryError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable ONNX model ({error})") from error
    if model.graph is None or not list(model.graph.outputs):
        raise ValueError(f"{path}: not an ONNX model: its graph has no outputs")
    return model


def model_files(model: ir.Model, path: str) -> dict[str, bytes]:
    """The contents of `path` and, above the limit, of `<path>.data` with its tensors."""
    proto_bytes = sum(v.const_value.nbytes for v in _tensors(model) if v.const_value is not None)
    if proto_bytes <= EXTERNAL_DATA_LIMIT:
        content = ir.to_proto(model).SerializeToString(deterministic=True)
        if len(content) <= EXTERNAL_DATA_LIMIT:
            return {path: content}
    data_name = f"{os.path.basename(path)}.data"
    with tempfile.TemporaryDirectory() as folder:
        ir.external_data.unload_from_model(
            model, folder, data_name, size_threshold_bytes=SMALLEST_EXTERNAL
        )
        proto = ir.to_proto(model)
        with open(os.path.join(folder, data_name), "rb") as file:
            data = file.read()
    return {path: proto.SerializeToString(deterministic=True), f"{path}.data": data}


def _tensors(model: ir.Model) -> list[ir.Value]:
    return list(model.graph.initializers.values())
