"""The sample configurations load, and say what they are for."""

from pathlib import Path

import pytest
from samples import FILES, FOLDER, written


@pytest.mark.parametrize(
    ("name", "twin"),
    [(name, f"{Path(name).stem}.cfg") for name in FILES if Path(name).suffix in (".yaml", ".json")],
)
def test_the_other_formats_say_the_same(tmp_path, name, twin):
    assert written(name, tmp_path) == written(twin, tmp_path)


@pytest.mark.parametrize(("name", "default"), [("ptq_int8.cfg", "ptq"), ("qat_int8.cfg", "qat")])
def test_the_defaults_spelled_out_are_the_defaults(tmp_path, name, default):
    assert written(name, tmp_path) == written(default, tmp_path)


W, A = "weight_quant_params", "activation_quant_params"
QW, QA = "retrain_weight_config", "retrain_data_config"
# Sample -> path in the JSON file -> value.
SAYS = {
    "ptq_a16w8.cfg": {
        ("batch_num",): 4,
        ("stem", A, "num_bits"): 16,
        ("conv3d", A, "num_bits"): 8,
        ("stem", W, "num_bits"): 8,
    },
    "ptq_a8w4.cfg": {
        ("blocks.0", W, "num_bits"): 4,
        ("conv3d", W, "num_bits"): 4,
        ("stem", W, "num_bits"): 8,  # 3 inputs
        ("blocks.1", W, "num_bits"): 8,  # groups
        ("classifier", W, "num_bits"): 8,
        ("blocks.0", A, "num_bits"): 8,
    },
    "ptq_hfmg.cfg": {
        ("stem", A, "act_algo"): "hfmg",
        ("stem", A, "num_of_bins"): 4096,
        ("stem", A, "asymmetric"): False,
    },
    "ptq_dmq_adaround.cfg": {
        ("stem", "dmq_balancer_param"): 0.5,
        ("stem", W, "wts_algo"): "ada_quantize",
        ("conv1d", W, "wts_algo"): "arq_quantize",
        ("stem", W, "beta_range"): [20.0, 2.0],
    },
    "ptq_overrides.cfg": {
        ("fakequant_precision_mode",): "FORCE_FP16_QUANT",
        ("skip_fusion_layers",): ["blocks.0"],
        ("stem", "quant_enable"): False,
        ("pool", "quant_enable"): False,
        ("blocks.0", "quant_enable"): True,
        ("blocks.0", W, "num_bits"): 6,
        ("blocks.0", A, "max_percentile"): 0.999999,  # nothing of common_config
        ("blocks.1", W, "num_bits"): 8,
        ("blocks.1", W, "channel_wise"): False,
        ("blocks.1", A, "num_bits"): 16,
        ("upsample", A, "max_percentile"): 0.9999,
        ("upsample", A, "asymmetric"): False,
        ("classifier", A, "num_of_bins"): 2048,
        ("classifier", A, "asymmetric"): True,
        ("classifier", "dmq_balancer_param"): 0.6,
    },
    "qat_int4_weights.cfg": {
        ("blocks.0", QW, "dst_type"): "INT4",
        ("blocks.0", QW, "algo"): "ulq_retrain",
        ("blocks.0", QA, "dst_type"): "INT8",
        ("stem", QW, "dst_type"): "INT8",
        ("classifier", QW, "dst_type"): "INT8",
        ("lstm", QW, "dst_type"): "INT8",
        ("pool", "retrain_enable"): False,
    },
}


@pytest.mark.parametrize("name", SAYS)
def test_a_sample_says_what_it_is_for(tmp_path, name):
    config = written(name, tmp_path)
    for path, expected in SAYS[name].items():
        value = config
        for key in path:
            value = value[key]
        assert value == expected, path


def test_the_readme_lists_every_sample():
    text = (FOLDER / "README.md").read_text()
    for name in FILES:
        stem, suffix = name.rsplit(".", 1)
        assert f"`{stem}.cfg`" in text
        assert f"`.{suffix}`" in text
