"""The benchmarks run: their own checks of correctness pass and they write what they say."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_benchmark(name, arguments, folder, monkeypatch):
    """The document that a benchmark writes."""
    script, result = BENCHMARKS / name, folder / "result.json"
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--json", str(result)])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return json.loads(result.read_text())


def test_ops_on_small_sizes(tmp_path, monkeypatch):
    # Two threads wait milliseconds for each other where the cores are taken.
    arguments = ["--scale", "0.002", "--repeats", "1", "--threads", "1"]
    document = run_benchmark("ops.py", arguments, tmp_path, monkeypatch)
    assert document.keys() == {"date", "command", "commit", "machine", "timings"}
    ops = {row["op"] for row in document["timings"]}
    assert {"fake_quantize", "ulq, backward", "arq_fake_quantize", "ifmr", "hfmg, update"} <= ops
    [same] = [row for row in document["timings"] if row["op"] == "same bits"]
    assert same["must"] == "met", same["why"]


def test_what_is_missed_is_told(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    case = importlib.import_module("_case")
    targets = case.Target("peer", 3, 5), case.Target("ns", 1.5)  # at least, at most
    row = case.Row("op", "of", {"peer": 4.0, "ns": 2.0}, "ATen", targets=targets)
    assert row.missed("must") == ["ns 2, not 1.5"]
    assert row.missed("stretch") == ["ATen 4, not 5"]


def test_a_result_that_was_not_written_is_found(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    case = importlib.import_module("_case")
    case.require_same("op", torch.ones(2), torch.ones(2))
    for wrong in (torch.tensor([1.0, torch.nan]), torch.ones(2).half(), torch.ones(1)):
        with pytest.raises(SystemExit, match="nothing is timed"):
            case.require_same("op", wrong, torch.ones(2))


def test_compile_on_small_blocks(tmp_path, monkeypatch):
    arguments = ["--quick", "--repeats", "1"]
    timings = run_benchmark("compile.py", arguments, tmp_path, monkeypatch)["timings"]
    assert {t["name"] for t in timings} == {"amct_pytorch", "formula"}
    assert len({t["case"] for t in timings}) == 8


def test_overhead(tmp_path, monkeypatch):
    timings = run_benchmark("overhead.py", ["--quick"], tmp_path, monkeypatch)["timings"]
    ops = ["fake_quantize", "ulq_scale", "arq_fake_quantize", "ulq"]
    ways = ["constant", "requires_grad", "both ways"]
    assert [(t["op"], t["way"]) for t in timings] == [(op, way) for op in ops for way in ways]


def test_auto_calibration_on_small_models(tmp_path, monkeypatch):
    document = run_benchmark("auto_calibration.py", ["--quick"], tmp_path, monkeypatch)
    wall = [t for t in document["timings"] if t["clock"] == "wall"]
    found = [(t["model"], t["case"], t["layers"], t["exports"]) for t in wall]
    assert found == [
        ("cnn", "nothing", 21, 1),
        ("cnn", "search", 21, 1),
        ("resnet18", "nothing", 21, 1),
        ("resnet18", "search", 21, 1),
    ]
    for t in wall:
        parts = {"total", "own", "evaluate", "calibration", "observe"}
        sums = sum(seconds for name, seconds in t["seconds"].items() if name not in parts)
        assert abs(sums - t["seconds"]["own"]) < 1e-6  # nothing of it is told twice or left out


def test_qat_step_on_a_small_model(tmp_path, monkeypatch):
    document = run_benchmark("qat_step.py", ["--quick"], tmp_path, monkeypatch)
    reads = {t["name"]: t["host_reads"] for t in document["timings"]}
    assert [n for name, n in reads.items() if name.startswith("amct_pytorch")] == [0, 0]


def test_config_on_a_small_model(tmp_path, monkeypatch):
    [timing] = run_benchmark("config.py", ["--quick"], tmp_path, monkeypatch)["timings"]
    assert timing["layers"] == 8
    assert 0 < timing["own"] < timing["total"]


def test_large_model_of_64_megabytes(tmp_path, monkeypatch):
    document = run_benchmark("large_model.py", ["--quick"], tmp_path, monkeypatch)
    steps = [step["step"] for step in document["steps"]]
    assert steps == ["create_quant_config", "quantize_model", "calibration", "save_model"]
    assert max(step["copies"] for step in document["steps"]) < 3.5  # with what libraries hold
    assert document["difference"] < 1e-5


def test_adaround_on_a_model_trained_little(tmp_path, monkeypatch):
    arguments = ["--quick", "--model", "digits"]
    document = run_benchmark("adaround.py", arguments, tmp_path, monkeypatch)
    cases = {case["weights"]: case["sqnr_db"] for case in document["cases"]}
    assert list(cases) == ["float", "ARQ", "AdaRound, 0 iterations", "AdaRound, 60 iterations"]
    assert cases["AdaRound, 60 iterations"] > cases["AdaRound, 0 iterations"]


def test_flow_on_a_small_model(tmp_path, monkeypatch):
    arguments = ["--quick", "--model", "vit_s", "--repeats", "1", "--threads", "1"]
    [row] = run_benchmark("flow.py", arguments, tmp_path, monkeypatch)["timings"]
    assert row["layers"] == 14
    assert row["exports"] == {"create_quant_config": 1, "quantize_model": 1, "save_model": 0}
    assert row["ratios"].keys() - row["seconds"].keys() == {"verbs"}
    assert row["seconds"]["search"] < row["seconds"]["only batch"]
    memory = row["memory"]
    assert memory["peaks"].keys() == memory["bounds"].keys()
    assert memory["states"] > 0
    assert all(met[0] <= met[1] for name, met in row["targets"].items() if "exports" in name)


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [("resnet50", 54, 25_557_032), ("mobilenet_v2", 53, 3_504_872), ("resnet200", 204, 4_461_816)],
)
def test_the_models_of_flow_are_what_they_are_called(monkeypatch, name, layers, parameters):
    monkeypatch.syspath_prepend(BENCHMARKS)
    make = importlib.import_module("flow").MODELS[name]
    with torch.device("meta"):
        model = make(224)
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(found) == layers
    assert sum(p.numel() for p in model.parameters()) == parameters
