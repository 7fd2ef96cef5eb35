"""quantization_errors: the sums of the tensors it does not make."""

import pytest
import torch
from layouts import LAYOUTS

from amct_pytorch.ops import fake_quantize, quantization_errors


def expected(x, scale, offset, num_bits):
    x = x.float()
    ends = [(q - offset) * scale for q in (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)]
    others = fake_quantize(x, scale, offset, num_bits), torch.clamp(x, *ends)
    return torch.stack([(x.double() - other).square().sum() for other in others])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_bits", [4, 8, 16])
def test_sums_of_float64(num_bits, dtype, layout, device):
    x = torch.randn(5, 7, 9, 11, generator=torch.Generator().manual_seed(0)) * 3
    x = LAYOUTS[layout](x.to(device, dtype))
    scale = torch.tensor(4.0 / 2**num_bits, device=device)
    offset = torch.tensor(1, dtype=torch.int32, device=device)
    sums = quantization_errors(x, scale, offset, num_bits)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, expected(x, scale, offset, num_bits), rtol=1e-12, atol=0)


def test_threads_and_graphs(with_threads):
    x, scale, offset = torch.randn(300_001), torch.tensor(0.01), torch.tensor(3, dtype=torch.int32)
    first, *others = with_threads(lambda: quantization_errors(x, scale, offset))
    assert all(torch.equal(first, other) for other in others)
    compiled = torch.compile(quantization_errors, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, scale, offset), first)


def test_errors(device):
    x, scale = torch.ones(2, device=device), torch.ones((), device=device)
    offset = torch.zeros((), dtype=torch.int32, device=device)
    with pytest.raises(TypeError, match="x: expected dtype float32"):
        quantization_errors(x.double(), scale, offset)
    with pytest.raises(ValueError, match="num_bits"):
        quantization_errors(x, scale, offset, 17)
    with pytest.raises(RuntimeError, match="scale must have 1 element"):
        quantization_errors(x, scale.expand(2), offset)
    assert quantization_errors(x[:0], scale, offset).tolist() == [0, 0]
