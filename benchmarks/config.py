"""Times `create_quant_config` from a simplified configuration that uses every common option.

    python benchmarks/config.py [--json FILE] [--layers 50 100 200] [--quick]

Convolutions with BatchNorms in a row, and a linear layer. What the configuration says is checked
before anything is timed. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _common import conv_bn, machine
from torch import nn

import amct_pytorch as amct
from amct_pytorch import steps

CHANNELS = 8
COMMON = """
batch_num: 4
activation_offset: false
fakequant_precision_mode: FORCE_FP16_QUANT
skip_layer_types: "AvgPool2d"
common_config {
  ifmr_quantize { search_range_start: 0.8 search_step: 0.02 dst_type: INT16 }
  arq_quantize { channel_wise: true quant_bits: 6 }
  dmq_balancer { migration_strength: 0.6 }
}
override_layer_types {
  layer_type: "Linear"
  calibration_config { hfmg_quantize { num_of_bins: 2048 } ada_quantize { quant_bits: 4 } }
}
"""
OVERRIDE = """
override_layer_configs {{
  layer_name: "{name}"
  calibration_config {{ hfmg_quantize {{ }} arq_quantize {{ quant_bits: 7 }} dmq_balancer {{ }} }}
}}
"""


@dataclass(frozen=True)
class Timing:
    """Medians in seconds for a model of a number of layers."""

    layers: int
    total: float
    capture: float  # tracing to ONNX, which any configuration needs
    own: float  # copy of the model, facts about its layers, configuration, file


def row_of(layers: int) -> nn.Module:
    """A model of so many layers that can be quantized."""
    blocks = [nn.Sequential(*conv_bn(CHANNELS, CHANNELS, 3), nn.ReLU()) for _ in range(layers - 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)]
    return nn.Sequential(*blocks, *head).eval()


def wishes(model: nn.Module) -> str:
    """The simplified configuration; every fourth convolution has an override, the first is left."""
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    skips = [f'skip_layers: "{convs[0]}"\n']
    fusion = [f'skip_fusion_layers: "{name}"\n' for name in convs[1::2]]
    return COMMON + "".join([*skips, *fusion, *(OVERRIDE.format(name=n) for n in convs[2::4])])


def check(path: Path, layers: int) -> None:
    """The file has what the configuration asks for."""
    entries = [v for v in json.loads(path.read_text()).values() if isinstance(v, dict)]
    bits = Counter(entry["weight_quant_params"]["num_bits"] for entry in entries)
    sevens = len(range(2, layers - 1, 4))
    if bits != {4: 1, 6: layers - 1 - sevens, 7: sevens}:
        raise SystemExit(f"{layers} layers have weights of other bits than asked for: {bits}")
    if sum(entry["quant_enable"] for entry in entries) != layers - 1:
        raise SystemExit("another layer is skipped than the one asked for")


def measure(layers: int, repeats: int) -> Timing:
    model = row_of(layers)
    data = torch.randn(1, CHANNELS, 8, 8)
    rounds: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path, asked = Path(folder, "config.json"), Path(folder, "quant.cfg")
        asked.write_text(wishes(model))
        for _ in range(1 + repeats):  # the first warms up
            rounds.append(one_round(model, data, path, asked))
        check(path, layers)
    totals, captures = zip(*rounds[1:], strict=True)
    own = [total - capture for total, capture in rounds[1:]]
    return Timing(layers, *map(statistics.median, (totals, captures, own)))


def one_round(model: nn.Module, data: Any, path: Path, asked: Path) -> tuple[float, float]:
    """Seconds in all, and seconds of the capture."""
    seconds = 0.0
    capture = steps.capture

    def timed(*args: Any) -> Any:
        nonlocal seconds
        begin = time.perf_counter()
        captured = capture(*args)
        seconds += time.perf_counter() - begin
        return captured

    with mock.patch.object(steps, "capture", timed):
        begin = time.perf_counter()
        amct.create_quant_config(str(path), model, data, config_defination=str(asked))
        return time.perf_counter() - begin, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--layers", type=int, nargs="+", help="default 50 100 200, quick 8")
    parser.add_argument("--repeats", type=int, help="rounds (default 5, quick 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    amct.set_logging_level("error", "error")

    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    sizes = options.layers or ([8] if options.quick else [50, 100, 200])
    repeats = options.repeats or (1 if options.quick else 5)
    timings = [measure(layers, repeats) for layers in sizes]
    print(f"{'layers':>6} {'total s':>9} {'capture s':>10} {'own s':>8} {'own %':>6}")
    for t in timings:
        share = 100 * t.own / t.total
        print(f"{t.layers:6d} {t.total:9.3f} {t.capture:10.3f} {t.own:8.3f} {share:6.1f}")
    if options.json:
        rows = [asdict(timing) for timing in timings]
        options.json.write_text(json.dumps({"machine": facts, "timings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
