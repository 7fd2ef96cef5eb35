"""What the integers of a layer compute."""

import torch
from torch import nn

from amct_pytorch.layers.integers import Factors, integers_of


def linear(*weight):
    layer = nn.Linear(len(weight), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
    return layer


def test_a_nan_stays_nan_as_in_the_fake_quant_graph():
    """Code 0 in its place would let a model that has diverged evaluate to plausible numbers."""
    layer = linear(1.0, 1.0)
    zero = torch.tensor(0, dtype=torch.int32)
    factors = Factors(torch.tensor(0.5), zero, 8, torch.tensor([0.5]), 8)
    integers = integers_of(layer, layer.weight, None, factors)
    y = integers.run(layer, torch.tensor([[1.0, torch.nan], [1.0, torch.inf]]))
    assert y[0].isnan()
    assert y[1].item() == 1 + 127 * 0.5
