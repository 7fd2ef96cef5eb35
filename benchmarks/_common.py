"""The models that benchmarks time, and the machine they run on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def cnn(width: int) -> nn.Module:
    """20 convolutions and a linear layer; the image is halved and the width doubled twice."""
    blocks: list[nn.Module] = []
    inputs = 3
    for index in range(20):
        outputs, stride = width * 2 ** (index // 7), 2 if index in (7, 14) else 1
        blocks += [conv_bn(inputs, outputs, 3, stride), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class BasicBlock(nn.Module):
    """The block of ResNet-18: two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)
        self.inner, self.outer = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.second(self.inner(self.first(x))) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """ResNet-18: 20 convolutions, three of them shortcuts, and a linear layer."""
    stem = [*conv_bn(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        blocks += [
            BasicBlock(inputs, outputs, 2 if stage else 1),
            BasicBlock(outputs, outputs, 1),
        ]
        inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)]
    return nn.Sequential(*stem, *blocks, *head)


@torch.no_grad()
def settle(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """`model` in evaluation mode, its BatchNorms with the statistics of `batches`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average
    model.train()
    for batch in batches:
        model(batch)
    return model.eval()


def machine() -> dict[str, str | int]:
    """What figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
