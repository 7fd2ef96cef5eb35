"""CMake: the torch-free core builds and passes its own test."""

import subprocess
from pathlib import Path

from cmake_build import ROOT, build, needs_cmake

pytestmark = needs_cmake


def test_core_without_torch_passes_ctest(tmp_path: Path) -> None:
    build(ROOT, tmp_path, "-DAMCT_TORCH=OFF")

    ctest = subprocess.run(
        ["ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error"],
        capture_output=True,
        text=True,
    )

    assert ctest.returncode == 0, ctest.stdout
