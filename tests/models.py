"""Small models that between them hold every quantizable layer."""

import torch
from torch import nn


class Digits(nn.Module):
    """conv-bn-relu, residual add, depthwise, transposed convolution, average pooling, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.pool = nn.AvgPool2d(2, padding=1)
        self.fc = nn.Linear(6 * 81, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.left(x) + self.right(x))
        x = self.pool(torch.relu(self.up(self.depthwise(x))))
        return self.fc(x.flatten(1))


class Sequence(nn.Module):
    """One-dimensional layers, and Linear on inputs of rank 2, 3 and 4."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 4, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.rank3 = nn.Linear(4, 6)
        self.rank4 = nn.Linear(6, 6, bias=False)
        self.rank2 = nn.Linear(6, 5)

    def forward(self, x):
        x = self.up(torch.relu(self.bn(self.conv(x))))
        x = self.rank3(x.transpose(1, 2))
        x = self.rank4(x[:, None])[:, 0]
        return self.rank2(x.mean(1))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm3d(4)
        self.strided = nn.Conv3d(4, 4, 2, stride=2, groups=2)

    def forward(self, x):
        return self.strided(torch.relu(self.bn(self.conv(x))))


def settled(model, seed=0):
    """`model` in evaluation mode with weights and BatchNorm statistics that look trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                shape = module.running_mean.shape
                if module.affine:
                    module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(shape, generator=generator) * 0.1)
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return model.eval()


MODELS = {
    "digits": (Digits, (4, 1, 8, 8)),
    "sequence": (Sequence, (4, 3, 12)),
    "volume": (Volume, (2, 2, 4, 6, 6)),
}


def example(name, dtype=torch.float32, batches=2):
    """A model and batches for it."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = settled(make()).to(dtype)
    return model, [torch.randn(shape).to(dtype) for _ in range(batches)]
