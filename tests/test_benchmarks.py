"""The benchmarks run: their own checks of correctness pass and they write what they say."""

import json
import runpy
import sys
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_ops_on_small_sizes(tmp_path, monkeypatch):
    script = BENCHMARKS / "ops.py"
    threads, result = torch.get_num_threads(), tmp_path / "result.json"
    arguments = ["--scale", "0.002", "--repeats", "1", "--json", str(result)]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert {"machine", "timings"} == json.loads(result.read_text()).keys()
