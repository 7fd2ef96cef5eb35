"""Automatic calibration in one call, for tests, with evaluators that follow a script."""

import json
import os
from pathlib import Path

import torch
from models import example

import amct_pytorch as amct
from amct_pytorch.common.auto_calibration import AutoCalibrationEvaluatorBase


def quantized_layers(model):
    """The names of the layers that a model given to evaluate() quantizes."""
    return [name for name, m in model.named_modules() if getattr(m, "enabled", False) is True]


class Scripted(AutoCalibrationEvaluatorBase):
    """Is satisfied when at least `needed` layers of the model are float; notes every call."""

    def __init__(self, batches, needed, layers=7):
        self.batches, self.needed, self.layers = batches, needed, layers
        self.evaluated, self.calibrated, self.judged = [], 0, 0

    def calibration(self, model):
        self.calibrated += 1
        for batch in self.batches:
            model(batch)

    def evaluate(self, model):
        subset = frozenset(quantized_layers(model))
        self.evaluated.append(subset)
        model(self.batches[0])
        return self.layers - len(subset)

    def metric_eval(self, original, new):
        self.judged += 1
        return new >= self.needed, float(max(self.needed - new, 0))


class Flow:
    """A folder with a model's configuration, and runs in it."""

    def __init__(self, folder, name="digits", batches=2, edit=None, **config_options):
        self.folder = folder
        self.model, self.batches = example(name, batches=batches)
        self.config_file = str(folder / "config.json")
        options = {"batch_num": batches, **config_options}
        amct.create_quant_config(self.config_file, self.model, self.batches[0], **options)
        if edit is not None:
            config = json.loads(Path(self.config_file).read_text())
            edit(config)
            Path(self.config_file).write_text(json.dumps(config))
        self.layers = [
            key
            for key, value in json.loads(Path(self.config_file).read_text()).items()
            if isinstance(value, dict) and value["quant_enable"]
        ]

    def scripted(self, needed):
        return Scripted(self.batches, needed, len(self.layers))

    def run(self, evaluator, **options):
        """The result; `evaluator` may be the number of layers that must be float."""
        if isinstance(evaluator, int):
            evaluator = self.scripted(evaluator)
        self.evaluator = evaluator
        before = os.getcwd()
        os.chdir(self.folder)  # where the history goes
        try:
            return amct.accuracy_based_auto_calibration(
                self.model,
                evaluator,
                self.config_file,
                str(self.folder / "record.txt"),
                str(self.folder / "out" / "net"),
                self.batches[0],
                **options,
            )
        finally:
            os.chdir(before)

    def files(self):
        """The content of every file in the folder, by its path there."""
        paths = (p for p in sorted(self.folder.rglob("*")) if p.is_file())
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in paths}

    def json(self, name):
        """A JSON file; strict, so NaN and Infinity are refused."""

        def refuse(constant):
            raise ValueError(f"{name}: {constant} is not JSON")

        return json.loads((self.folder / name).read_text(), parse_constant=refuse)

    @property
    def history(self):
        return self.json("amct_log/accuracy_based_auto_calibration_record.json")

    @property
    def ranking(self):
        return self.json("out/accuracy_based_auto_calibration_ranking_information.json")

    @property
    def final_config(self):
        return self.json("out/accuracy_based_auto_calibration_final_config.json")

    @property
    def report(self):
        return self.json("out/accuracy_based_auto_calibration_report.json")


def state_of(model):
    """What must not change in a user's model: tensors, modes, hooks."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [(name, type(m), m.training, len(m._forward_hooks)) for name, m in model.named_modules()],
        [p.requires_grad for p in model.parameters()],
    )


def same_state(one, other):
    tensors = one[0].keys() == other[0].keys() and all(
        torch.equal(one[0][key], other[0][key]) for key in one[0]
    )
    return tensors and one[1:] == other[1:]
