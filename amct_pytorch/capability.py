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
    ptq: bool = True  # post-training quantization offers it
    recurrent: bool = False  # has a hidden state, with factors of its own


CAPABILITIES: dict[type[nn.Module], Capability] = {
    nn.Conv1d: Capability(channel_wise=True, fusion=True),
    nn.Conv2d: Capability(channel_wise=True, ada=True, six_seven_bits=True, fusion=True),
    nn.Conv3d: Capability(channel_wise=True, asymmetric=False, int16=False, fusion=True),
    nn.ConvTranspose1d: Capability(channel_wise=True),
    nn.ConvTranspose2d: Capability(channel_wise=True, ada=True),
    nn.Linear: Capability(channel_wise=False, ada=True),
    nn.AvgPool2d: Capability(channel_wise=False, int16=False, dmq=False, weights=False),
    nn.LSTM: Capability(channel_wise=True, dmq=False, ptq=False, recurrent=True),
    nn.GRU: Capability(channel_wise=True, dmq=False, ptq=False, recurrent=True),
}

BY_KIND: dict[str, Capability] = {cls.__name__: c for cls, c in CAPABILITIES.items()}
PTQ_KINDS = tuple(kind for kind, capability in BY_KIND.items() if capability.ptq)


def kind_of(module: nn.Module, recurrent: bool = False) -> str | None:
    """The quantizable type `module` is an instance of (subclasses included), or None.

    LSTM and GRU are such types only with `recurrent`.
    """
    for cls, capability in CAPABILITIES.items():
        if isinstance(module, cls) and (recurrent or not capability.recurrent):
            return cls.__name__
    return None
