"""The examples run as a user runs them, and what they print is true."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def run_example(name: str, folder: Path, *launcher: str) -> dict[str, str]:
    """The rows that an example prints, run in `folder`."""
    script = ROOT / "examples" / name
    done = subprocess.run(
        [sys.executable, *launcher, script, "--quick", "--output-dir", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = (line.rsplit("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    return {**{name.strip(): value for name, value in rows}, "folder": str(folder)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_example("ptq_digits.py", tmp_path_factory.mktemp("ptq_digits"))


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_example("auto_calibration_digits.py", tmp_path_factory.mktemp("auto_calibration"))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_example("qat_digits.py", tmp_path_factory.mktemp("qat_digits"))


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_example("qat_ddp.py", tmp_path_factory.mktemp("qat_ddp"), *TWO_PROCESSES)


def percent(value: str) -> float:
    return float(value.removesuffix("%"))


def test_float_model_is_worth_quantizing(table: dict[str, str]) -> None:
    assert percent(table["top-1, float model"]) >= 95


@pytest.mark.parametrize("model", ["quantized model in torch", "fake_quant ONNX"])
def test_quantization_costs_at_most_one_percent(table: dict[str, str], model: str) -> None:
    assert percent(table[f"top-1, {model}"]) >= percent(table["top-1, float model"]) - 1


def test_torch_and_onnx_agree(table: dict[str, str]) -> None:
    assert table["all predictions agree, torch and ONNX"] == "yes"


def test_quantization_noise_is_small(table: dict[str, str]) -> None:
    assert float(table["SQNR, fake_quant ONNX to float"].removesuffix(" dB")) > 20


def test_deploy_weights_are_a_quarter(table: dict[str, str]) -> None:
    float_bytes = int(table["weights, float"].removesuffix(" bytes"))
    assert int(table["weights, deploy"].removesuffix(" bytes")) * 4 == float_bytes


@pytest.mark.parametrize("row", ["record of factors", "fake_quant ONNX", "deploy ONNX"])
def test_printed_files_exist(table: dict[str, str], row: str) -> None:
    assert (Path(table["folder"]) / table[row]).stat().st_size > 0


def test_the_search_puts_back_the_fragile_layer_and_no_other(search: dict[str, str]) -> None:
    assert search["layers left in float"] == "pointwise"
    assert (
        percent(search["top-1, everything quantized"]) < percent(search["top-1, float model"]) - 5
    )


def test_onnx_has_the_accuracy_that_the_result_reports(search: dict[str, str]) -> None:
    assert search["top-1, its fake_quant ONNX"] == search["top-1, result"]
    assert percent(search["top-1, result"]) >= percent(search["top-1, float model"]) - 1
    for row in ("fake_quant ONNX", "deploy ONNX", "report"):
        assert (Path(search["folder"]) / search[row]).stat().st_size > 0


def test_training_with_8_bits_costs_at_most_half_a_percent(training: dict[str, str]) -> None:
    trained = percent(training["top-1, 8-bit weights, trained, fake_quant ONNX"])
    assert trained >= percent(training["top-1, float model"]) - 0.5


@pytest.mark.parametrize("row", ["top-1", "test loss"])
def test_training_with_4_bit_weights_beats_calibration(training: dict[str, str], row: str) -> None:
    before = percent(training[f"{row}, 4-bit weights, not trained"])
    after = percent(training[f"{row}, 4-bit weights, trained, fake_quant ONNX"])
    assert after > before if row == "top-1" else after < before


@pytest.mark.parametrize("weights", ["8-bit weights", "4-bit weights"])
def test_trained_model_and_its_onnx_agree(training: dict[str, str], weights: str) -> None:
    assert training[f"all predictions agree, {weights}"] == "yes"
    plot = Path(training["folder"]) / training[f"learned ranges, {weights}"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_two_processes_train_one_model(parallel: dict[str, str]) -> None:
    assert parallel["parameters agree in all processes"] == "yes"
    trained = percent(parallel["top-1, trained by 2 processes"])
    assert trained >= percent(parallel["top-1, float model"]) - 0.5
    assert (Path(parallel["folder"]) / parallel["fake_quant ONNX"]).stat().st_size > 0
