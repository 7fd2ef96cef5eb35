"""Which layer types can be quantized, and with which options (one table, by class)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Capability:
    """What the configuration may ask of one layer type."""

    channel_wise: bool  # one weight scale per output channel allowed (and then the default)
    asymmetric: bool = True  # activations may have an offset
    int16: bool = True  # 16-bit activations (Linear: only with a bias)
    dmq: bool = True  # DMQ balancing
    ada: bool = False  # AdaRound
    six_seven_bits: bool = False  # 6- and 7-bit weights
    fusion: bool = False  # a following BatchNorm is folded in
    weights: bool = True  # has weights to quantize
    recurrent: bool = False  # has a hidden state, with factors of its own


CAPABILITIES: dict[type[nn.Module], Capability] = {
    nn.Conv1d: Capability(channel_wise=True, fusion=True),
    nn.Conv2d: Capability(channel_wise=True, ada=True, six_seven_bits=True, fusion=True),
    nn.Conv3d: Capability(channel_wise=True, asymmetric=False, int16=False, fusion=True),
    nn.ConvTranspose1d: Capability(channel_wise=True),
    nn.ConvTranspose2d: Capability(channel_wise=True, ada=True),
    nn.Linear: Capability(channel_wise=False, ada=True),
    nn.AvgPool2d: Capability(channel_wise=False, int16=False, dmq=False, weights=False),
    nn.LSTM: Capability(channel_wise=True, dmq=False, recurrent=True),
    nn.GRU: Capability(channel_wise=True, dmq=False, recurrent=True),
}

BY_KIND: dict[str, Capability] = {cls.__name__: c for cls, c in CAPABILITIES.items()}
KINDS = tuple(BY_KIND)


def kind_of(module: nn.Module) -> str | None:
    """The quantizable type `module` is an instance of (subclasses included), or None."""
    return next((cls.__name__ for cls in CAPABILITIES if isinstance(module, cls)), None)


def is_recurrent(module: nn.Module) -> bool:
    """Whether `module` has a hidden state, with factors of its own."""
    kind = kind_of(module)
    return kind is not None and BY_KIND[kind].recurrent
