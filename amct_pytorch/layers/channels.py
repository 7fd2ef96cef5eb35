"""Weights with the output channel in front, which is how every weight is quantized.

Conv and Linear weights are [Cout, Cin/g, k...] already. A transposed convolution holds
[Cin, Cout/g, k...], whose output channel is group * (Cout/g) + j.
"""

from __future__ import annotations

from torch import Tensor


def channels_first(weight: Tensor, transposed: bool, groups: int = 1) -> Tensor:
    """[Cout, Cin/g, k...] of a weight; a view where the layout allows."""
    if not transposed:
        return weight
    cin, per_group, *kernel = weight.shape
    split = weight.reshape(groups, cin // groups, per_group, *kernel)
    return split.transpose(1, 2).reshape(groups * per_group, cin // groups, *kernel)


def channels_restored(weight: Tensor, transposed: bool, groups: int = 1) -> Tensor:
    """The inverse of `channels_first`."""
    if not transposed:
        return weight
    cout, per_group, *kernel = weight.shape
    split = weight.reshape(groups, cout // groups, per_group, *kernel)
    return split.transpose(1, 2).reshape(groups * per_group, cout // groups, *kernel)
