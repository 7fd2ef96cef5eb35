"""The flow of quantization-aware training in one call, for tests."""

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from ptq_flow import run

import amct_pytorch as amct


@dataclass
class QatFlow:
    folder: Path
    float_model: object
    data: object
    model: object = None

    @property
    def config_file(self):
        return str(self.folder / "retrain.json")

    @property
    def record_file(self):
        return str(self.folder / "record.txt")

    def create(self):
        self.model = amct.create_quant_retrain_model(
            self.config_file, self.float_model, self.record_file, self.data
        )
        return self.model

    def restore(self, pth_file, **options):
        return amct.restore_quant_retrain_model(
            self.config_file,
            self.float_model,
            self.record_file,
            self.data,
            str(pth_file),
            **options,
        )

    def save(self, model=None, **names):
        amct.save_quant_retrain_model(
            self.config_file,
            self.model if model is None else model,
            self.record_file,
            str(self.folder / "out"),
            self.data,
            **names,
        )
        return self

    @property
    def deploy(self):
        return onnx.load(self.folder / "out_deploy_model.onnx")

    @property
    def fake_quant(self):
        return onnx.load(self.folder / "out_fake_quant_model.onnx")

    def run_fake_quant(self, *inputs):
        return torch.from_numpy(run(self.fake_quant, *inputs))


def retrain(folder, model, data, edit=None, **config_options):
    """Configuration and model of QAT; `edit` changes the configuration's JSON object in place."""
    flow = QatFlow(folder, model, data)
    amct.create_quant_retrain_config(flow.config_file, model, data, **config_options)
    if edit is not None:
        config = json.loads(Path(flow.config_file).read_text())
        edit(config)
        Path(flow.config_file).write_text(json.dumps(config))
    flow.create()
    return flow


def layers_of(config):
    """The objects of the layers in a configuration."""
    return [value for value in config.values() if isinstance(value, dict)]


def train(model, batches, steps=1, lr=1e-2, seed=0):
    """A few steps of SGD towards random outputs; returns the losses."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    losses = []
    for step in range(steps):
        x = batches[step % len(batches)]
        y = model(x)
        loss = (y - torch.ones_like(y)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
