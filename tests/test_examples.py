"""The examples run as a user runs them, and what they print is true."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The rows that ptq_digits.py prints."""
    folder = tmp_path_factory.mktemp("ptq_digits")
    script = ROOT / "examples" / "ptq_digits.py"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--output-dir", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = (line.rsplit("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    table = {name.strip(): value for name, value in rows}
    table["folder"] = str(folder)
    return table


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
