"""The CUDA kernels without a GPU: compiled for the CPU, they compute what the CPU ops compute."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import amct_pytorch.ops  # noqa: F401  (the ops to compare with)

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++ on PATH")

CPU = torch.ops.amct_pytorch
CUDA = torch.ops.amct_emulated
LAST = torch.channels_last
# Sizes, axis, memory format: rows and lines of tiles.h, whole vectors and parts of them, one
# share and several.
LAYOUTS = [
    ((0,), None, None),
    ((5,), None, None),
    ((70001,), None, None),
    ((3, 5), 0, None),
    ((3, 9000), 0, None),
    ((17, 301), 0, None),
    ((2, 3, 2500), 1, None),
    ((64, 3, 7, 7), 1, None),
    ((20, 6, 5, 5), 1, LAST),
    ((40, 8, 1, 1), 1, None),
    ((20, 2, 255), 1, None),
    ((16, 2, 257), 1, None),
    ((18, 1030), 1, None),
    ((2000, 16), 1, None),
    ((2000, 3), 1, None),
    ((4, 0), 0, None),
]
layouts = pytest.mark.parametrize(("sizes", "axis", "memory_format"), LAYOUTS, ids=str)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:]
)


@pytest.fixture(scope="module", autouse=True)
def emulated(tmp_path_factory):
    """The sources of the CUDA ops, compiled by a C++ compiler with csrc/tests/emulation."""
    library = tmp_path_factory.mktemp("emulated") / "ops.so"
    torch_folder = Path(torch.__file__).parent
    subprocess.run(
        [
            *(COMPILER, "-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off"),
            *("-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"),
            "-fsanitize=alignment,bounds,shift,signed-integer-overflow",  # ends the process
            "-fsanitize-undefined-trap-on-error",
            *("-DUSE_CUDA", "-DAMCT_NO_PYTHON", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
            f"-I{ROOT / 'csrc/tests/emulation'}",
            *("-isystem", torch_folder / "include"),
            *(ROOT / "csrc/tests/ops_emulated.cpp", "-o", library),
            *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
        ],
        check=True,
    )
    torch.ops.load_library(library)


def values(sizes, dtype, memory_format, *, seed=0, skipped=0):
    """Random values, from an address that is no multiple of a vector where some are skipped."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(sizes).numel() + skipped
    x = torch.randn(count, generator=generator).to(dtype)[skipped:].reshape(sizes)
    return x if memory_format is None else x.contiguous(memory_format=memory_format)


def factors(sizes, axis):
    generator = torch.Generator().manual_seed(1)
    shape = [] if axis is None else [sizes[axis]]
    scale = torch.rand(shape, generator=generator) * 0.05 + 0.01
    return scale, torch.randint(-5, 5, shape, generator=generator, dtype=torch.int32)


def same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30))


def close(got, expected, tolerance):
    """Sums, whose order of additions is that of a device."""
    largest = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * largest)


@layouts
@dtypes
@pytest.mark.parametrize("skipped", [0, 1])
def test_maps(sizes, axis, memory_format, dtype, skipped):
    x = values(sizes, dtype, memory_format, skipped=skipped)
    grad = values(sizes, dtype, memory_format, seed=2)
    scale, offset = factors(sizes, axis)
    for bits in (8, 16):
        arguments = (x, scale, offset, bits, axis)
        codes = CPU.quantize(*arguments)
        same([CUDA.quantize(*arguments)], [codes])
        codes = (codes, scale, offset, axis)
        same([CUDA.dequantize(*codes)], [CPU.dequantize(*codes)])
    same([CUDA.fake_quantize(*arguments)], [CPU.fake_quantize(*arguments)])
    same(
        [CUDA.fake_quantize_backward(grad, *arguments)],
        [CPU.fake_quantize_backward(grad, *arguments)],
    )


@layouts
@dtypes
@pytest.mark.parametrize("skipped", [0, 1])
def test_sums(sizes, axis, memory_format, dtype, skipped):
    x = values(sizes, dtype, memory_format, skipped=skipped)
    grad = values(sizes, dtype, memory_format, seed=2)
    scale, _ = factors(sizes, axis)
    backward = (grad, x, scale, 8, axis, False, 1)
    close(CUDA.ulq_scale_backward(*backward), CPU.ulq_scale_backward(*backward), 1e-6)
    close(CUDA.similarity_sums(x, grad), CPU.similarity_sums(x, grad), 1e-12)


@pytest.mark.parametrize(("sizes", "axis"), [((20001,), None), ((2, 40, 300), 1), ((40, 9), 1)])
def test_sums_of_many_results(sizes, axis):
    x = values(sizes, torch.float32, None, skipped=1)
    scale, _ = factors(sizes, axis)
    close(CUDA.shift_errors(x, scale, axis), CPU.shift_errors(x, scale, axis), 1e-12)


@dtypes
@pytest.mark.parametrize("count", [0, 1, 1000, 70001])
def test_a_sum_that_maps(dtype, count):
    x, grad = (values([count], dtype, None, seed=seed) for seed in (0, 2))
    arguments = (grad, x, torch.tensor(1.0), torch.tensor(-0.5), 8, False, True)
    got, expected = CUDA.ulq_backward(*arguments), CPU.ulq_backward(*arguments)
    same(got[:1], expected[:1])
    for a, b in zip(got[1:], expected[1:], strict=True):
        close(a, b, 1e-6)


def test_a_sum_does_not_depend_on_the_address():
    x = values([70001], torch.float16, None)
    moved = torch.cat([x[:1], x])[1:]
    assert moved.data_ptr() % 16 != x.data_ptr() % 16
    assert torch.equal(CUDA.similarity_sums(x, x), CUDA.similarity_sums(moved, moved))


@layouts
@dtypes
@pytest.mark.parametrize("skipped", [0, 1])
def test_ranges(sizes, axis, memory_format, dtype, skipped):
    x = values(sizes, dtype, memory_format, skipped=skipped)
    same(CUDA.arq(x, 8, axis, True), CPU.arq(x, 8, axis, True))
    same(CUDA.arq_fake_quantize(x, 8, axis, 1), CPU.arq_fake_quantize(x, 8, axis, 1))


def test_ranges_of_special_values():
    rows = [[1.0, -0.0], [float("nan"), 1.0], [float("-inf"), 2.0], [-3.0, -4.0], [1e-40, 2e-40]]
    x = torch.tensor(rows).repeat(1, 200)
    same(CUDA.arq_fake_quantize(x, 8, 0, 1), CPU.arq_fake_quantize(x, 8, 0, 1))


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [((4, 6, 3, 3), 2), ((32, 3, 300), 2), ((64, 8, 2, 2), 2), ((6, 1, 5), 3)],
    ids=str,
)
def test_groups(sizes, groups):
    weight, grad = (values(sizes, torch.float32, None, seed=seed) for seed in (0, 2))
    scale, _ = factors([groups * sizes[1]], 0)
    same(
        [CUDA.ulq_scale(weight, scale, 8, 1, False, groups)],
        [CPU.ulq_scale(weight, scale, 8, 1, False, groups)],
    )
    backward = (grad, weight, scale, 8, 1, False, groups)
    close(CUDA.ulq_scale_backward(*backward), CPU.ulq_scale_backward(*backward), 1e-6)
    same(CUDA.arq_fake_quantize(weight, 8, 1, groups), CPU.arq_fake_quantize(weight, 8, 1, groups))


@dtypes
@pytest.mark.parametrize(
    ("sizes", "axis"), [((70001,), None), ((3, 9000), 0), ((5, 3, 400), 1), ((300, 8), 1)], ids=str
)
@pytest.mark.parametrize("bins", [1024, 8192])
def test_histograms(sizes, axis, bins, dtype):
    x = values(sizes, dtype, None, skipped=1)
    channels = 1 if axis is None else sizes[axis]
    empty = torch.tensor([[float("inf"), float("-inf")]] * channels)
    state = (empty, torch.zeros(channels, bins, dtype=torch.int64))
    same(CUDA.hfmg_update(x, *state, axis), CPU.hfmg_update(x, *state, axis))
    state = CPU.hfmg_update(x, *state, axis)
    same(CUDA.hfmg_update(x * 2, *state, axis), CPU.hfmg_update(x * 2, *state, axis))


DISTRIBUTIONS = {
    "normal": lambda x: x,
    "relu": lambda x: x.relu(),
    "negative": lambda x: -x.abs(),
    "atoms": lambda x: (x * 37).round() / 37,
    "capped": lambda x: (4 * x).clamp(0, 6),  # half of the values in two buckets
    "wide": lambda x: x * (2 * x).exp(),
    "zeros": torch.zeros_like,
}


@dtypes
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("count", "bits"), [(5, 8), (70001, 8), (3001, 16)])
def test_ifmr(name, count, bits, dtype):
    x = DISTRIBUTIONS[name](values([count], torch.float32, None, skipped=1)).to(dtype)
    for percentile in (1.0, 0.9):
        arguments = (x, bits, True, percentile, percentile, [0.7, 1.3], 0.01, None)
        same(CUDA.ifmr(*arguments), CPU.ifmr(*arguments))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_ifmr_refuses_what_is_not_finite(value):
    x = values([70001], torch.float32, None)
    x[69999] = value
    with pytest.raises(RuntimeError, match="x must be finite"):
        CUDA.ifmr(x, 8, True, 1.0, 1.0, [0.7, 1.3], 0.01, None)
