"""The PTQ flow in one call, for tests."""

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

import amct_pytorch as amct


@dataclass
class Flow:
    folder: Path
    calibrated: object

    @property
    def config(self):
        return json.loads((self.folder / "config.json").read_text())

    @property
    def record_file(self):
        return str(self.folder / "record.txt")

    @property
    def deploy(self):
        return onnx.load(self.folder / "out_deploy_model.onnx")

    @property
    def fake_quant(self):
        return onnx.load(self.folder / "out_fake_quant_model.onnx")

    @property
    def modified(self):
        return onnx.load(self.folder / "modified.onnx")

    def run_fake_quant(self, *inputs):
        return run(self.fake_quant, *inputs)

    def save(self):
        amct.save_model(
            str(self.folder / "modified.onnx"), self.record_file, str(self.folder / "out")
        )


def session_of(model):
    """Stock ONNX Runtime on `model`, without its own changes to the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, *inputs):
    """First output of `model` in stock ONNX Runtime."""
    session = session_of(model)
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)[0]


def run_session(model, feeds):
    """All outputs of `model` in stock ONNX Runtime by name, for arrays by name."""
    session = session_of(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def ptq(
    folder, model, batches, edit=None, save=True, opset_version=13, config_options=None, **names
):
    """Config, quantization, calibration on `batches` (each a tensor or a tuple), export."""
    data = batches[0]
    config_file = str(folder / "config.json")
    options = {"batch_num": len(batches), **(config_options or {})}
    amct.create_quant_config(config_file, model, data, **options, opset_version=opset_version)
    if edit is not None:
        config = json.loads(Path(config_file).read_text())
        edit(config)
        Path(config_file).write_text(json.dumps(config))
    calibrated = amct.quantize_model(
        config_file,
        str(folder / "modified.onnx"),
        str(folder / "record.txt"),
        model,
        data,
        opset_version=opset_version,
        **names,
    )
    for batch in batches:
        args = batch if isinstance(batch, tuple) else (batch,)
        keywords = args[-1] if isinstance(args[-1], dict) else {}
        calibrated(*(a for a in args if not isinstance(a, dict)), **keywords)
    flow = Flow(folder, calibrated)
    if save:
        flow.save()
    return flow
