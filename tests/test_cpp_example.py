"""examples/cpp: a C++ program gets from the ops what Python gets."""

import subprocess
from pathlib import Path

import torch
from cmake_build import ROOT, build, needs_cmake

from amct_pytorch import ops

pytestmark = needs_cmake


def test_cpp_program_prints_what_the_python_ops_compute(tmp_path: Path) -> None:
    x = torch.arange(-16, 48).float() / 16
    scale, offset = ops.ifmr(x)
    y = ops.fake_quantize(x, scale, offset)

    build(ROOT / "examples" / "cpp", tmp_path)
    program = subprocess.run([tmp_path / "quantize"], check=True, capture_output=True, text=True)

    # "%.9g" keeps every bit of a float32.
    expected = [f"scale {scale.item():.9g}", f"offset {offset.item()}"]
    expected += [f"{a:.9g} -> {b:.9g}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert program.stdout.splitlines() == expected
