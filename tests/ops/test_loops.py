"""The loops under the ops: shapes that meet every way through them, instruction sets, threads."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from amct_pytorch.ops import (
    arq_fake_quantize,
    dequantize,
    fake_quantize,
    quantize,
    similarity,
    ulq,
    ulq_scale,
)

FLOATING = (torch.float32, torch.float16, torch.bfloat16)
# [outer, channels, inner]: rows alone and in tables, whole tiles or not, of one line or of many,
# results that go through the caches and, from 16 MB on, past them.
SHAPES = [
    (1, 1, 1), (1, 1, 15), (1, 1, 17), (1, 1, 5_000_003),
    (1, 3, 100), (2, 5, 300), (40, 7, 90), (3, 17, 257), (7, 1001, 700),
    (5, 3, 1), (1000, 3, 1), (9, 4096, 1), (1250, 4096, 1), (20, 2049, 1), (90, 50_003, 1),
    (130, 64, 9), (600, 512, 9), (1500, 64, 49), (3, 3, 31), (33, 33, 33),
]  # fmt: skip


def normal(*size, seed=0):
    """float32 values that no library's vector width decides about."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size, dtype=np.float32))


def factors(channels):
    scale = normal(channels, seed=1).abs() * 0.05 + 0.01
    offset = torch.arange(channels, dtype=torch.int32) % 19 - 9
    return scale, offset


def formula(x, scale, offset):
    """fake_quantize along dimension 1 of [outer, channels, inner] in torch operations."""
    scale, offset = scale.view(-1, 1), offset.view(-1, 1).float()
    codes = (torch.round(x.float() * scale.reciprocal()) + offset).clamp(-128, 127)
    return ((codes - offset) * scale).to(x.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_through_the_loops_gives_the_formula(shape):
    x = normal(*shape)
    scale, offset = factors(shape[1])
    for dtype in FLOATING:
        y = fake_quantize(x.to(dtype), scale, offset, axis=1)
        assert torch.equal(y, formula(x.to(dtype), scale, offset)), dtype
        codes = quantize(x.to(dtype), scale, offset, axis=1)
        assert torch.equal(dequantize(codes, scale, offset, axis=1).to(dtype), y), dtype


@pytest.mark.parametrize("start", [1, 3, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1, 5_000_003), (7, 1001, 700), (600, 512, 9)], ids=str)
def test_memory_that_starts_anywhere(shape, start):
    memory = normal(start + int(np.prod(shape)))
    scale, offset = factors(shape[1])
    for dtype in FLOATING:
        x = memory.to(dtype)[start:].view(shape)
        assert torch.equal(fake_quantize(x, scale, offset, axis=1), formula(x, scale, offset))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_every_channel(shape):
    weight, grad = normal(*shape), normal(*shape, seed=2)
    scale = (factors(shape[1])[0] * 0.3).requires_grad_()
    ulq_scale(weight, scale, axis=1).backward(grad)

    w, s = weight.double(), scale.detach().double().view(-1, 1)
    ratio = (weight / scale.detach().view(-1, 1)).double()
    inside = ratio.round() - ratio
    slope = torch.where(w > s * 127, 127.0, torch.where(w < s * -128, -128.0, inside))
    shared = weight.numel() / shape[1]
    expected = (grad * slope).sum((0, 2)) / (shared * 127) ** 0.5
    size = (grad * slope).abs().sum((0, 2)) / (shared * 127) ** 0.5
    assert ((scale.grad - expected).abs() <= 1e-6 * size).all()


# ---- instruction sets and threads ----


def digests():
    """Of the results of all loops on the smaller shapes."""
    found = []
    for shape in (s for s in SHAPES if np.prod(s) < 500_000):
        x, grad = normal(*shape), normal(*shape, seed=2)
        scale, offset = factors(shape[1])
        for dtype in FLOATING:
            typed = x.to(dtype, copy=True).requires_grad_()
            learnt = scale.clone().requires_grad_()
            clip = torch.tensor(1.3, requires_grad=True)
            y = ulq(typed, clip, torch.tensor(-0.9))[0]
            w = ulq_scale(typed, learnt, num_bits=4, axis=1)
            q = fake_quantize(typed, scale, offset, axis=1)
            (y + w + q).backward(grad.to(dtype))
            results = [y, w, q, quantize(typed, scale, offset, num_bits=12, axis=1)]
            results += [typed.grad, learnt.grad, clip.grad, arq_fake_quantize(typed, axis=1)]
            sums = similarity(typed.detach(), grad.to(dtype))
            found += [t.detach().view(torch.uint8).numpy().tobytes() for t in results if t.dim()]
            found += [clip.grad.numpy().tobytes(), repr(sums).encode()]
    return hashlib.sha256(b"".join(found)).hexdigest()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_instruction_sets_agree_to_the_bit(capability):
    run = subprocess.run(
        [sys.executable, "-c", "import test_loops; print(test_loops.digests())"],
        cwd=os.path.dirname(__file__),
        env={
            **os.environ,
            "ATEN_CPU_CAPABILITY": capability,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == digests()


def test_threads_agree_to_the_bit(with_threads):
    assert len(set(with_threads(digests, counts=(1, 2, 5)))) == 1
