"""The sample configurations, and a model that they fit."""

import json
from pathlib import Path

import torch
from torch import nn

import amct_pytorch as amct

FOLDER = Path(__file__).parent.parent / "examples" / "configs"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".md")


class EveryType(nn.Module):
    """A layer of every quantizable type, with the names that the samples use."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.pool = nn.AvgPool2d(2)
        self.upsample = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.conv1d = nn.Conv1d(4, 4, 3, padding=1)
        self.up1d = nn.ConvTranspose1d(4, 2, 2, stride=2)
        self.conv3d = nn.Conv3d(2, 2, 1)
        self.lstm = nn.LSTM(8, 6)
        self.gru = nn.GRU(6, 4)
        self.classifier = nn.Linear(4, 10)

    def forward(self, x, hidden, cell, last):
        x = self.upsample(self.pool(self.blocks(self.stem(x))))
        x = self.up1d(self.conv1d(x.flatten(2)))
        x = self.conv3d(x.reshape(1, 2, 4, 4, 8)).reshape(16, 1, 16)[..., :8]
        return self.classifier(self.gru(self.lstm(x, (hidden, cell))[0], last)[0])


def written(name, folder):
    """The JSON configuration for the model: of a sample, or of none for "ptq" and "qat"."""
    create = amct.create_quant_retrain_config if name[:3] == "qat" else amct.create_quant_config
    shapes = (1, 3, 8, 8), (1, 1, 6), (1, 1, 6), (1, 1, 4)
    data = tuple(torch.ones(shape) for shape in shapes)
    path, sample = folder / "config.json", str(FOLDER / name) if name in FILES else None
    create(str(path), EveryType().eval(), data, config_defination=sample)
    return json.loads(path.read_text())
