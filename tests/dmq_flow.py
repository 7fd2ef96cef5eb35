"""DMQ balancing and PTQ in one call, for tests."""

import json
from pathlib import Path

from ptq_flow import Flow
from torch import nn

import amct_pytorch as amct


class Files:
    """The files of one quantization in a folder, and the verbs on them."""

    def __init__(self, folder, model, batches, **options):
        self.folder, self.model, self.batches, self.options = folder, model, batches, options
        self.config, self.modified, self.record, self.out = (
            str(folder / name) for name in ("config.json", "modified.onnx", "record.txt", "out")
        )

    def create(self, strength=0.5, layers=None, edit=None, **options):
        """A configuration that balances `layers`, or all layers with weights."""
        options = {"batch_num": len(self.batches), **options}
        amct.create_quant_config(
            self.config, self.model, self.batches[0], **options, **self.options
        )
        config = json.loads(Path(self.config).read_text())
        for name, entry in config.items():
            if not isinstance(entry, dict) or (layers is not None and name not in layers):
                continue
            if not isinstance(self.model.get_submodule(name), nn.AvgPool2d):
                entry["dmq_balancer_param"] = strength
        if edit is not None:
            edit(config)
        Path(self.config).write_text(json.dumps(config))

    def preprocess(self):
        return amct.quantize_preprocess(
            self.config, self.record, self.model, self.batches[0], **self.options
        )

    def quantize(self, **names):
        return amct.quantize_model(
            self.config,
            self.modified,
            self.record,
            self.model,
            self.batches[0],
            **self.options,
            **names,
        )

    def run(self, model, batches=None):
        return [model(batch) for batch in (self.batches if batches is None else batches)]


def balanced_ptq(folder, model, batches, save=True, names=None, opset_version=13, **config):
    """Config, balancing, quantization, calibration on `batches`, export; `config` for `create`."""
    files = Files(folder, model, batches, opset_version=opset_version)
    files.create(**config)
    files.run(files.preprocess())
    calibrated = files.quantize(**(names or {}))
    files.run(calibrated)
    flow = Flow(folder, calibrated)
    flow.files = files
    if save:
        flow.save()
    return flow
