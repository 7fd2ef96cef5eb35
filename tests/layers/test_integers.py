"""The rules that exported graphs and evaluated layers share."""

import numpy as np
import pytest
import torch
from torch import nn

from amct_pytorch.layers.integers import (
    Factors,
    bias_codes,
    dequant_scale,
    integers_of,
    to_half_precision,
)


def test_a_truncated_scale_keeps_ten_bits_of_mantissa():
    scales = torch.tensor([8e-5, 1.6e-4, 0.1, 1.0])
    truncated = dequant_scale(scales, torch.tensor(1.0), force_fp16=True)
    expected = [0x38A7C000, 0x3927C000, 0x3DCCC000, 0x3F800000]
    assert truncated.numpy().view(np.uint32).tolist() == expected


def test_a_scale_is_the_float32_product():
    product = dequant_scale(torch.tensor([0.02]), torch.tensor(0.004), force_fp16=False)
    assert product.numpy() == np.float32(0.02) * np.float32(0.004)


def test_a_bias_is_rounded_half_to_even_in_float64():
    codes = bias_codes(torch.tensor([0.5, 1.5, -2.5]), torch.tensor([1.0]))
    assert codes.tolist() == [0.0, 2.0, -2.0]
    assert codes.dtype == torch.float64


@pytest.mark.parametrize("scale", [0.0123456, 3.0, 2.0**-14])
def test_a_normal_scale_is_rounded_to_float16(scale):
    assert to_half_precision(torch.tensor(scale)).item() == float(np.float16(scale))


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_the_square_of_the_rounded_root_stands_for_another_scale(scale):
    root = np.float32(np.float16(np.sqrt(np.float32(scale))))
    assert to_half_precision(torch.tensor(scale)).item() == float(root * root)


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
