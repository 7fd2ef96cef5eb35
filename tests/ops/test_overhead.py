"""What a call of an op passes through: no second dispatch, no Python where no gradient is asked."""

import sys

import pytest
import torch
from learnt import names_of_operations

from amct_pytorch.ops import arq_fake_quantize, dequantize, fake_quantize, quantize, ulq, ulq_scale

ops = torch.ops.amct_pytorch


def tensors():
    """x, scale, offset, clip_max, clip_min."""
    x = torch.linspace(-2, 2, 16)
    scale, offset = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    return x, scale, offset, torch.tensor(1.0), torch.tensor(-1.0)


# Ops with a gradient as (typed function, the same called directly), of one floating tensor.
def by_name():
    _, scale, offset, clip_max, clip_min = tensors()
    pair = (clip_max, clip_min)
    return {
        "fake_quantize": (
            lambda x: fake_quantize(x, scale, offset, 4),
            lambda x: ops.fake_quantize(x, scale, offset, 4, None),
        ),
        "ulq": (
            lambda x: ulq(x, *pair)[0],
            lambda x: ops.ulq(x, *pair, 8, False, True, None, None)[0],
        ),
        "ulq_scale": (
            lambda x: ulq_scale(x, scale, 4),
            lambda x: ops.ulq_scale(x, scale, 4, None, False, 1),
        ),
        "arq_fake_quantize": (
            lambda x: arq_fake_quantize(x, 4),
            lambda x: ops.arq_fake_quantize(x, 4, None, 1)[0],
        ),
    }


each_op = pytest.mark.parametrize("name", by_name())


@each_op
@pytest.mark.parametrize("requires_grad", [False, True], ids=["constant", "learnt"])
def test_a_forward_is_one_operation(name, requires_grad):
    typed, _ = by_name()[name]
    x = tensors()[0].requires_grad_(requires_grad)
    names = names_of_operations(lambda: typed(x))
    assert {n for n in names if "::" in n} == {f"amct_pytorch::{name}"}


@pytest.mark.parametrize("op", [quantize, dequantize])
def test_a_forward_without_gradient_is_one_operation(op):
    x, scale, offset, *_ = tensors()
    x = x.to(torch.int8) if op is dequantize else x
    names = names_of_operations(lambda: op(x, scale, offset))
    assert {n for n in names if "::" in n} - {"aten::detach"} == {f"amct_pytorch::{op.__name__}"}


def python_functions(function):
    """The files of the Python functions that run in a call."""
    files = set()
    sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename))
    try:
        function()
    finally:
        sys.setprofile(None)
    return files


@each_op
@pytest.mark.parametrize("requires_grad", [False, True], ids=["constant", "learnt"])
def test_the_dispatcher_does_not_come_back_to_python(name, requires_grad):
    x = tensors()[0].requires_grad_(requires_grad)
    typed, direct = ((lambda f=f: f(x)) for f in by_name()[name])
    assert any("_library/autograd" in file for file in python_functions(direct))
    assert not any("_library/autograd" in file for file in python_functions(typed))


@each_op
def test_direct_callers_have_the_same_gradients(name):
    grads = []
    for function in by_name()[name]:
        x = tensors()[0].requires_grad_()
        (function(x) ** 2).sum().backward()
        grads.append(x.grad)
    assert grads[0].abs().sum() > 0
    assert torch.equal(*grads)


@each_op
def test_no_gradient_is_kept_where_none_is_asked_for(name):
    typed, _ = by_name()[name]
    x = tensors()[0].requires_grad_()
    with torch.no_grad():
        assert not typed(x).requires_grad
    with torch.inference_mode():
        assert typed(x).is_inference()
    assert typed(x).requires_grad


@each_op
def test_a_trace_holds_the_operation(name):
    typed, _ = by_name()[name]
    traced = torch.jit.trace(typed, tensors()[0].requires_grad_())
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert f"amct_pytorch::{name}" in kinds
    assert "prim::PythonOp" not in kinds


@each_op
def test_transforms_of_torch_func_are_refused_with_a_gradient(name):
    typed, _ = by_name()[name]
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: typed(x).sum())(tensors()[0])
