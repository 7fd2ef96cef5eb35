"""quantize, dequantize and fake_quantize: values, layouts, gradients, graphs, errors."""

import numpy as np
import pytest
import reference
import torch
from layouts import LAYOUTS

from amct_pytorch.ops import dequantize, fake_quantize, quantize

FLOATING = [torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")
ops = torch.ops.amct_pytorch


def factors(channels, device="cpu", seed=0):
    """Per-channel factors, or those of a tensor where `channels` is None."""
    random = torch.Generator().manual_seed(seed)
    shape = [] if channels is None else [channels]
    scale = torch.rand(shape, generator=random) * 0.1 + 0.01
    offset = torch.randint(-9, 9, shape, generator=random, dtype=torch.int32)
    return scale.to(device), offset.to(device)


def example(dtype=torch.float32, device="cpu"):
    random = torch.Generator().manual_seed(1)
    return (torch.randn(3, 5, 4, 7, generator=random) * 4).to(dtype).to(device)


def cast(array, dtype):
    return torch.from_numpy(np.array(array)).to(dtype)


def assert_same(got, expected):
    """Equal bits; NaN equal to NaN."""
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


# ---- values ----


def test_values_of_the_documentation(device):
    x = torch.tensor([-9.0, 0.02, 0.26, 9.0], device=device)
    scale, offset = torch.tensor(0.25), torch.tensor(0, dtype=torch.int32)
    y = fake_quantize(x, scale.to(device), offset.to(device), num_bits=4)
    assert y.tolist() == [-2.0, 0.0, 0.25, 1.75]


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -4], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_layout_gives_the_bits_of_the_formula(dtype, layout, axis, device):
    x = LAYOUTS[layout](example(dtype, device))
    scale, offset = factors(None if axis is None else x.shape[axis], device)
    values = (x.cpu().float(), scale.cpu(), offset.cpu())

    q = quantize(x, scale, offset, axis=axis)
    y = fake_quantize(x, scale, offset, axis=axis)

    assert_same(q, torch.from_numpy(reference.quantize(*values, axis=axis)))
    assert_same(y, cast(reference.fake_quantize(*values, axis=axis), dtype))
    codes = reference.dequantize(q.cpu(), *values[1:], axis=axis)
    assert_same(dequantize(q, scale, offset, axis), cast(codes, torch.float32))
    assert y.stride() == torch.empty_like(x).stride()
    assert q.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (1, 1, 1), (257,), (2, 3, 4, 5, 6)])
def test_every_number_of_dimensions(shape, device):
    x = torch.randn(shape).to(device)
    scale, offset = factors(None, device)
    expected = reference.fake_quantize(x.cpu(), scale.cpu(), offset.cpu())
    assert_same(fake_quantize(x, scale, offset), cast(expected, torch.float32))


def test_factors_of_one_element_may_be_0d_or_1d(device):
    x, (scale, offset) = example(device=device), factors(None, device)
    assert_same(
        fake_quantize(x, scale.reshape(1), offset.reshape(1)), fake_quantize(x, scale, offset)
    )


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_num_bits(num_bits, device):
    limit = 2.0 ** (num_bits - 1)
    x = torch.linspace(-2 * limit, 2 * limit, 1001, device=device)
    scale, offset = torch.tensor(0.75), torch.tensor(1, dtype=torch.int32)
    q = quantize(x, scale.to(device), offset.to(device), num_bits)
    assert q.dtype == (torch.int8 if num_bits <= 8 else torch.int16)
    assert (q.min(), q.max()) == (-limit, limit - 1)
    assert_same(q, torch.from_numpy(reference.quantize(x.cpu(), scale, offset, num_bits)))


def test_ties_round_to_even(device):
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], device=device)
    one, zero = torch.tensor(1.0, device=device), torch.tensor(0, dtype=torch.int32, device=device)
    assert quantize(x, one, zero).tolist() == [-2, -2, 0, 0, 2, 2]


def test_offset_is_added_after_rounding(device):
    x = torch.tensor([0.5, 1.5], device=device)
    one, odd = torch.tensor(1.0, device=device), torch.tensor(1, dtype=torch.int32, device=device)
    assert quantize(x, one, odd).tolist() == [1, 3]  # rounding 0.5 + 1 instead gives 2


def test_nan_and_infinity(device):
    x = torch.tensor([NAN, -INF, INF, 3e38, -0.0], device=device)
    scale, offset = torch.tensor(0.5, device=device), torch.tensor(3, device=device).int()
    assert quantize(x, scale, offset).tolist() == [0, -128, 127, 127, 3]
    y = fake_quantize(x, scale, offset).tolist()
    assert str(y) == "[nan, -65.5, 62.0, 62.0, 0.0]"


def test_nan_at_every_position(device):
    scale, offset = factors(None, device)
    for dtype in FLOATING:
        for n in range(1, 70):
            x = torch.full((n,), NAN, dtype=dtype, device=device)
            assert fake_quantize(x, scale, offset).isnan().all()
            assert quantize(x, scale, offset).eq(0).all()


# ---- torch's own fake quantization ----


def tie_aligned(scale):
    """Halves of the quantization step, their neighbours in float32, and random values."""
    ties = (torch.arange(-600, 600) * 0.5 * scale).float()
    around = [torch.nextafter(ties, torch.tensor(limit)) for limit in (-INF, INF)]
    return torch.cat([ties, *around, torch.randn(5000) * 100 * scale])


@pytest.mark.parametrize("num_bits", [2, 4, 8, 16])
@pytest.mark.parametrize("scale", [0.1, 0.0123, 1.0, 3e-5, 700.0])
def test_bits_of_torch_per_tensor(scale, num_bits, device):
    x = tie_aligned(scale).to(device)
    scale, offset = torch.tensor(scale, device=device), torch.tensor(1, device=device).int()
    limits = reference.quant_range(num_bits)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, offset, *limits)
    assert_same(fake_quantize(x, scale, offset, num_bits), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_bits_of_torch_per_channel(axis, device):
    x = (torch.randn(6, 9, 50) * 3).to(device)
    scale, offset = factors(x.shape[axis], device)
    expected = torch.fake_quantize_per_channel_affine(x, scale, offset, axis, -128, 127)
    assert_same(fake_quantize(x, scale, offset, axis=axis), expected)


def test_where_torch_differs():
    """torch casts to an integer before clamping: NaN and values beyond int64 lose their place."""
    x = torch.tensor([NAN, 3e38])
    one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    theirs = torch.fake_quantize_per_tensor_affine(x, one, zero, -128, 127)
    assert not theirs.isnan().any()
    assert str(fake_quantize(x, one, zero).tolist()) == "[nan, 127.0]"


def test_offset_may_lie_outside_the_codes():
    """torch refuses a zero point outside [qmin, qmax]; a range that excludes zero needs one."""
    x = torch.tensor([10.0, 12.0])
    one, offset = torch.tensor(1.0), torch.tensor(-138, dtype=torch.int32)
    assert quantize(x, one, offset).tolist() == [-128, -126]
    with pytest.raises(RuntimeError, match="zero_point"):
        torch.fake_quantize_per_tensor_affine(x, 1.0, -138, -128, 127)


# ---- gradient ----


def test_gradient_is_zero_where_the_code_saturates(device):
    x = torch.tensor([-2.13, -2.12, 0.1, 1.87, 1.88, NAN], device=device, requires_grad=True)
    scale, offset = torch.tensor(0.25, device=device), torch.tensor(0, device=device).int()
    fake_quantize(x, scale, offset, num_bits=4).backward(torch.full_like(x, 2.0))
    assert x.grad.tolist() == [0.0, 2.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("axis", [None, 1, -2], ids=lambda a: f"axis={a}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradient_of_every_layout(dtype, layout, axis, device):
    x = LAYOUTS[layout](example(dtype, device)).detach().requires_grad_()
    scale, offset = factors(None if axis is None else x.shape[axis], device)
    grad = torch.randn(x.shape).to(dtype).to(device)
    fake_quantize(x, scale, offset, 4, axis).backward(grad)
    values = (grad.cpu().float(), x.detach().cpu().float(), scale.cpu(), offset.cpu())
    assert_same(x.grad, cast(reference.fake_quantize_grad(*values, 4, axis), dtype))


def test_factors_receive_no_gradient():
    x, (scale, offset) = example().requires_grad_(), factors(None)
    scale.requires_grad_()
    fake_quantize(x, scale, offset).sum().backward()
    assert x.grad is not None
    assert scale.grad is None


compiling = pytest.mark.parametrize("compiling", [False, True], ids=["kernels", "traced"])


@compiling
def test_dequantize_is_not_differentiable(compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    scale, offset = factors(None)
    y = dequantize(torch.ones(3, dtype=torch.int8), scale.requires_grad_(), offset)
    assert not y.requires_grad


@compiling
def test_gradient_of_the_gradient(compiling, monkeypatch, device):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    x = torch.tensor([-2.13, 0.3, 1.88], device=device, requires_grad=True)
    scale, offset = torch.tensor(0.25, device=device), torch.tensor(0, device=device).int()
    y = fake_quantize(x, scale, offset, num_bits=4)
    (grad,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)  # mask * 3 y^2
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert second.tolist() == [0.0, 6 * 0.25, 0.0]
    assert y.tolist() == [-2.0, 0.25, 1.75]


# ---- threads, registration, graphs ----


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_threads_do_not_change_bits(dtype, with_threads):
    x = torch.randn(7, 30011).to(dtype)
    scale, offset = factors(7)
    results = with_threads(lambda: fake_quantize(x, scale, offset, axis=0))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("axis", [None, 1])
def test_registration(axis, device):
    x = example(device=device)
    scale, offset = factors(None if axis is None else x.shape[axis], device)
    q = quantize(x, scale, offset, 8, axis)
    check = torch.library.opcheck
    check(ops.quantize.default, (x, scale, offset, 8, axis))
    check(ops.dequantize.default, (q, scale, offset, axis))
    check(ops.fake_quantize.default, (x.clone().requires_grad_(), scale, offset, 8, axis))
    grad = x.clone().requires_grad_()
    check(ops.fake_quantize_backward.default, (grad, x, scale, offset, 8, axis))


def three(x, scale, offset, axis):
    """fake_quantize, and quantize followed by dequantize."""
    q = quantize(x, scale, offset, 4, axis)
    return fake_quantize(x, scale, offset, 4, axis), q, dequantize(q, scale, offset, axis)


@pytest.mark.parametrize("axis", [None, -3], ids=lambda a: f"axis={a}")
def test_traced_formulas_have_the_bits_of_the_kernels(axis, monkeypatch):
    x = torch.cat([example(), torch.tensor([NAN, -0.0, INF, -INF]).expand(3, 5, 4, 4)], dim=-1)
    scale, offset = factors(None if axis is None else x.shape[axis])
    for dtype in FLOATING:
        eager_x, traced_x = (x.to(dtype, copy=True).requires_grad_() for _ in range(2))
        eager = three(eager_x, scale, offset, axis)
        eager[0].backward(x.to(dtype))
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            patch.setattr(torch.compiler, "is_exporting", lambda: True)  # all dtypes
            traced = three(traced_x, scale, offset, axis)
            traced[0].backward(x.to(dtype))
        for got, expected in zip(traced, eager, strict=True):
            assert_same(got, expected)
            assert_same(1 / got.float(), 1 / expected.float())  # the sign of a zero
        assert_same(traced_x.grad, eager_x.grad)


def test_compiled_graph_has_the_bits_of_eager(device):
    x = example(device=device)
    x[0, 0, 0, 0] = NAN
    scale, offset = factors(x.shape[1], device)
    eager_x, compiled_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    eager = three(eager_x, scale, offset, -3)
    eager[0].backward(x)
    compiled = torch.compile(three, fullgraph=True)(compiled_x, scale, offset, -3)
    compiled[0].backward(x)

    for got, expected in zip(compiled, eager, strict=True):
        assert_same(got, expected)
    assert_same(compiled_x.grad, eager_x.grad)


def test_compiled_graph_holds_torch_operations_only():
    sources = []

    def record(graph, _):
        sources.append(graph.print_readable(print_output=False))
        return graph

    torch.compile(three, fullgraph=True, backend=record)(
        example().requires_grad_(), *factors(5), axis=1
    )
    assert "round" in sources[0]
    assert "ops.amct_pytorch" not in sources[0]


class Quantized(torch.nn.Module):
    def forward(self, x, scale, offset):
        return fake_quantize(x, scale, offset, 8, 1)


def test_exported_program_holds_torch_operations_only():
    arguments = (example(), *factors(5))
    program = torch.export.export(Quantized(), arguments)
    assert "ops.amct_pytorch" not in str(program.graph)
    assert_same(program.module()(*arguments), Quantized()(*arguments))


# ---- errors ----


@pytest.mark.parametrize("op", [quantize, fake_quantize])
def test_wrong_types_name_the_argument(op):
    x, (scale, offset) = torch.ones(3), factors(None)
    with pytest.raises(TypeError, match=r"^x: expected dtype .*, got float64"):
        op(x.double(), scale, offset)
    with pytest.raises(TypeError, match=r"^x: expected a torch.Tensor, got list"):
        op([1.0], scale, offset)
    with pytest.raises(TypeError, match=r"^scale: expected dtype float32, got float16"):
        op(x, scale.half(), offset)
    with pytest.raises(TypeError, match=r"^offset: expected dtype int32, got int64"):
        op(x, scale, offset.long())


def test_wrong_types_of_dequantize():
    scale, offset = factors(None)
    with pytest.raises(TypeError, match=r"^q: expected dtype int8 or int16, got int32"):
        dequantize(torch.ones(3, dtype=torch.int32), scale, offset)


@pytest.mark.parametrize("num_bits", [1, 17])
def test_num_bits_outside_the_range(num_bits):
    with pytest.raises(ValueError, match="num_bits"):
        quantize(torch.ones(3), *factors(None), num_bits)


def test_axis_that_is_not_there():
    with pytest.raises(IndexError, match="axis 2"):
        quantize(torch.ones(3, 3), *factors(3), axis=2)


@pytest.mark.parametrize(("channels", "axis"), [(3, None), (2, 0), (None, 0)])
def test_factors_of_another_size(channels, axis):
    with pytest.raises(RuntimeError, match="scale must have"):
        fake_quantize(torch.ones(3, 2), *factors(channels), axis=axis)


@pytest.mark.parametrize("axis", [None, 0])
def test_traced_formulas_refuse_what_the_kernels_refuse(axis, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(RuntimeError, match="scale must have"):
        fake_quantize(torch.ones(3, 2), *factors(2), axis=axis)
    with pytest.raises(ValueError, match="num_bits"):
        fake_quantize(torch.ones(3, 2), *factors(None), 1)


# ---- results in memory that is there ----


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_out_takes_the_result_in_its_own_layout(dtype, layout, axis, device):
    typed = LAYOUTS[layout](example(dtype, device))
    scale, offset = factors(None if axis is None else typed.shape[axis], device)
    expected = fake_quantize(typed, scale, offset, axis=axis)
    for out in (torch.full_like(expected, 9), torch.full(typed.shape, 9, dtype=dtype).to(device)):
        assert fake_quantize(typed, scale, offset, axis=axis, out=out) is out
        assert_same(out, expected)
    itself = typed.clone()
    assert_same(fake_quantize(itself, scale, offset, axis=axis, out=itself), expected)


def test_out_may_overlap_x(device):
    values, (scale, offset) = torch.linspace(-3, 3, 100_001, device=device), factors(None, device)
    for x, out in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
        memory = values.clone()
        expected = fake_quantize(memory[x].clone(), scale, offset)
        assert_same(fake_quantize(memory[x], scale, offset, out=memory[out]), expected)


def test_out_that_a_backward_has_saved_is_an_error(device):
    x, (scale, offset) = torch.ones(3, device=device, requires_grad=True), factors(None, device)
    hidden = x * 2
    result = hidden.sin()
    fake_quantize(hidden.detach(), scale, offset, out=hidden.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_out_in_inference_mode(device):
    scale, offset = factors(None, device)
    with torch.inference_mode():
        x = torch.linspace(-3, 3, 9, device=device)
        expected = fake_quantize(x, scale, offset)
        assert_same(fake_quantize(x, scale, offset, out=x), expected)


def test_out_in_a_compiled_graph():
    x, (scale, offset) = example(), factors(None)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, out):
        return fake_quantize(x, scale, offset, out=out) + 1

    out = torch.zeros_like(x)
    assert_same(run(x, out), fake_quantize(x, scale, offset) + 1)
    assert_same(out, fake_quantize(x, scale, offset))


def test_out_that_does_not_fit(device):
    x, (scale, offset) = example(device=device), factors(None, device)
    with pytest.raises(TypeError, match="out: expected dtype float32, got float16"):
        fake_quantize(x, scale, offset, out=x.half())
    with pytest.raises(RuntimeError, match="out must have the shape of x: dimension 0 is 2"):
        fake_quantize(x, scale, offset, out=x[:2].clone())
    with pytest.raises(RuntimeError, match="leave out=, or call within"):
        fake_quantize(x.requires_grad_(), scale, offset, out=torch.empty_like(x))
