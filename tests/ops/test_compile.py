"""The ops of training inside torch.compile: the bits of eager mode, and what remains a kernel."""

import pytest
import torch
from learnt import names_of_operations

from amct_pytorch.ops import arq_fake_quantize_scale, fake_quantize, quantize, ulq, ulq_scale

NAN, INF = float("nan"), float("inf")
ops = torch.ops.amct_pytorch


def every_op(x, weight, clip_max, clip_min, scale):
    """Each between operations that a compiler fuses with it."""
    x, weight = x * 1.1, weight * 1.1
    factors = torch.tensor(0.013), torch.tensor(3, dtype=torch.int32)
    y, *_, used_max, used_min = ulq(x, clip_max, clip_min)
    symmetric = ulq(x, clip_max, clip_min, 4, asymmetric=False)[0]
    learnt = ulq_scale(weight, scale, 4, -2)
    reciprocal = ulq_scale(weight, 1 / scale[:1], 4, reciprocal=True)
    quantized, found = arq_fake_quantize_scale(weight, 8, 0)
    whole = arq_fake_quantize_scale(weight)[0]
    differentiable = [y, symmetric, learnt, reciprocal, quantized, whole]
    differentiable.append(fake_quantize(x, *factors))
    return differentiable, [used_max, used_min, found, quantize(x, *factors)]


def arguments(dtype):
    """Values with ties, zeros of both signs, NaN and infinities; weights without the last two."""
    special = torch.tensor([NAN, INF, -INF, -0.0, 0.0, 1e-40, -1e-40])
    x = torch.cat([torch.randn(2000) * 2, torch.arange(-600, 600) * 0.0065, special]).to(dtype)
    weight = torch.cat([torch.randn(6, 300), torch.tensor([-0.0, 0.0]).expand(6, 2)], 1).to(dtype)
    scale = torch.tensor([0.1, 0.05, 0.3, 1e-9, -0.2, 1.0])
    tensors = x, weight, torch.tensor(1.3), torch.tensor([-0.4]), scale
    return [t.clone().requires_grad_() for t in tensors]


def both_ways(function, dtype):
    torch.manual_seed(0)
    learnt = arguments(dtype)
    results, constants = function(*learnt)
    grads = torch.autograd.grad(results, learnt, [torch.cos(y.detach()) for y in results])
    return [*results, *constants], grads


def assert_same_bits(got, want):
    assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    if got.is_floating_point():
        torch.testing.assert_close(got.signbit() | got.isnan(), want.signbit() | want.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_bits_of_eager_mode(dtype):
    compiled = torch.compile(every_op, fullgraph=True)
    (values, grads), (expected, expected_grads) = (
        both_ways(function, dtype) for function in (compiled, every_op)
    )
    if dtype == torch.float32:  # of 16 bits, the compiler adds up gradients with more digits
        values, expected = [*values, *grads], [*expected, *expected_grads]
    for got, want in zip(values, expected, strict=True):
        assert_same_bits(got, want)
    names = {n for n in names_of_operations(lambda: both_ways(compiled, dtype)) if "amct" in n}
    sums = {f"amct_pytorch::{n}" for n in ("ulq_backward", "ulq_scale_backward")}
    if dtype == torch.float32:
        assert names == {"amct_pytorch::ulq_factors", *sums}
    else:
        kernels = ("ulq", "ulq_scale", "arq_fake_quantize", "fake_quantize", "quantize")
        assert names >= {f"amct_pytorch::{n}" for n in kernels} | sums


def loss(x, clip_max, scale):
    y = ulq(x, clip_max, torch.tensor(-1.0))[0] @ ulq_scale(x[:4], scale, 4, 0).T
    return (y * y).sum()


@pytest.mark.parametrize(
    "options", [{"dynamic": True}, {"mode": "reduce-overhead"}], ids=["dynamic", "reduce-overhead"]
)
def test_options_of_the_compiler(options):
    compiled = torch.compile(loss, fullgraph=True, **options)
    for rows in (5, 7, 9) if "dynamic" in options else (5, 5):
        learnt = [torch.randn(rows, 8), torch.tensor(1.3), torch.full((4,), 0.2)]
        learnt = [t.requires_grad_() for t in learnt]
        got, want = (torch.autograd.grad(f(*learnt), learnt) for f in (compiled, loss))
        torch.testing.assert_close(got, want)


def test_without_gradients():
    x = torch.randn(50)
    with torch.no_grad():
        got = torch.compile(lambda x: ulq(x, torch.tensor(1.0), torch.tensor(-1.0))[0])(x)
    assert torch.equal(got, ulq(x, torch.tensor(1.0), torch.tensor(-1.0))[0])


class Quantized(torch.nn.Module):
    def forward(self, x, clip_max, clip_min, scale):
        y = ulq(x, clip_max, clip_min)[0]
        return y, ulq_scale(x, scale, 8, 0), arq_fake_quantize_scale(x, 8, 0)[0]


def test_exported_program_names_the_ops():
    x = torch.randn(3, 5), torch.tensor(1.0), torch.tensor(-1.0), torch.rand(3)
    program = torch.export.export(Quantized(), x)
    for name in ("ulq", "ulq_scale", "arq_fake_quantize"):
        assert f"ops.amct_pytorch.{name}.default" in str(program.graph_module.code)
    for got, want in zip(program.module()(*x), Quantized()(*x), strict=True):
        assert torch.equal(got, want)


def test_no_layout_is_asked_for():
    """The convolution's gradient and the input lie in different orders: both are taken as is."""

    def step(x, weight, clip_max):
        y = ulq(x, clip_max, torch.tensor(-1.0))[0]
        return torch.nn.functional.conv2d(y, weight, padding=1).square().sum()

    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    learnt = [t.requires_grad_() for t in (x, torch.randn(4, 4, 3, 3), torch.tensor(1.0))]
    got, want = (
        torch.autograd.grad(f(*learnt), learnt) for f in (torch.compile(step, fullgraph=True), step)
    )
    torch.testing.assert_close(got, want)
    for op in (ops.ulq, ops.ulq_backward, ops.fake_quantize, ops.ulq_scale_backward):
        assert torch.Tag.flexible_layout in op.default.tags


def test_wrong_sizes_are_refused():
    compiled = torch.compile(lambda w, s: ulq_scale(w, s, 8, 0), backend="eager")
    with pytest.raises(RuntimeError, match="scale must have 3 elements"):
        compiled(torch.ones(3, 2), torch.ones(2))
