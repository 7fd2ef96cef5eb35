"""The models that benchmarks time, and the machine they run on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
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


class Bottleneck(nn.Module):
    """The block of ResNet-50: 1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.first = conv_bn(inputs, width, 1)
        self.second = conv_bn(width, width, 3, stride)
        self.third = conv_bn(width, outputs, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.second(self.relu(self.first(x))))
        return self.relu(self.third(inner) + self.shortcut(x))


def resnet50(width: int, depths: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    """ResNet-50 with width 64: 53 convolutions and a linear layer; more for larger `depths`."""
    blocks: list[nn.Module] = [*conv_bn(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        for index in range(depth):
            blocks.append(Bottleneck(inputs, inner, 2 if stage and not index else 1))
            inputs = 4 * inner
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: 1x1, depthwise 3x3 and linear 1x1 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [*conv_bn(inputs, inner, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [*conv_bn(inner, inner, 3, stride, groups=inner), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*expand, *depthwise, *conv_bn(inner, outputs, 1))
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same else self.layers(x)


MOBILENET_STAGES = (  # expansion, channels of width 32, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(width: int) -> nn.Module:
    """MobileNetV2 with width 32: 52 convolutions, 17 of them depthwise, and a linear layer."""
    blocks: list[nn.Module] = [*conv_bn(3, width, 3, 2), nn.ReLU6(inplace=True)]
    inputs = width
    for expansion, channels, count, stride in MOBILENET_STAGES:
        outputs = channels * width // 32
        for index in range(count):
            blocks.append(InvertedResidual(inputs, outputs, 1 if index else stride, expansion))
            inputs = outputs
    last = [*conv_bn(inputs, 40 * width, 1), nn.ReLU6(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40 * width, 1000)]
    return nn.Sequential(*blocks, *last, *head)


class EncoderBlock(nn.Module):
    """A pre-norm transformer block whose queries, keys and values have layers of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.before(x)
        q, k, v = (self._split(layer(normed)) for layer in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ViT(nn.Module):
    """ViT-S/16 with width 384: a convolution, 72 linear layers in 12 blocks, and one at the end."""

    def __init__(self, width: int, size: int, patch: int = 16, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, 6) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


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
