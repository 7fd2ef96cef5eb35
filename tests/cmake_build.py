"""Builds a CMake project the way its README says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

needs_cmake = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))),
    reason="needs cmake and a C++ compiler on PATH",
)


def build(source: Path, folder: Path, *options: str) -> None:
    """Configures and builds the project `source` in `folder`, with the torch of this Python."""
    python = f"-DPython_EXECUTABLE={sys.executable}"
    subprocess.run(["cmake", "-S", source, "-B", folder, python, *options], check=True)
    subprocess.run(["cmake", "--build", folder, "--parallel", "2"], check=True)
