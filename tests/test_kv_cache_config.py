"""The configuration of KV-cache calibration: what is written, what is read, what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from torch import nn

import amct_pytorch as amct
from amct_pytorch.records import Records

MODEL = nn.ModuleDict(
    {"k_proj": nn.Linear(8, 4), "v_proj": nn.Linear(8, 4), "conv": nn.Conv2d(1, 1, 1)}
)
NAMES = {"kv_cache_quant_layers": ["k_proj", "v_proj"]}
IFMR = """\
            "act_algo":"ifmr",
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "quant_granularity":0
"""
HFMG = """\
            "act_algo":"hfmg",
            "num_of_bins":2048,
            "asymmetric":false,
            "quant_granularity":1
"""
OVERRIDE = 'override_layers_configs { layer_name: "%s" kv_data_quant_config { %s } }'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(batch_num, activation_offset, **layers):
    parts = "".join(
        f',\n    "{name}":{{\n        "kv_data_quant_config":{{\n{text}        }}\n    }}'
        for name, text in layers.items()
    )
    offset = str(activation_offset).lower()
    return f'{{\n    "batch_num":{batch_num},\n    "activation_offset":{offset}{parts}\n}}'


def from_text(text):
    Path("cali.cfg").write_text(text)
    amct.create_quant_cali_config("config.json", MODEL, config_defination="cali.cfg")
    return Path("config.json").read_text()


def test_the_default_file():
    amct.create_quant_cali_config("config.json", MODEL, NAMES)
    assert Path("config.json").read_text() == document(1, True, k_proj=IFMR, v_proj=IFMR)


def test_the_file_of_a_simplified_configuration():
    text = (
        "batch_num: 4 activation_offset: false\n"
        'kv_cache_quant_config { quant_layers: "v_proj" calibration_config { hfmg_quantize {\n'
        "  num_of_bins: 2048 asymmetric: false quant_granularity: per_channel } } }\n"
        + OVERRIDE
        % ("k_proj", "")
    )
    assert from_text(text) == document(4, False, k_proj=IFMR, v_proj=HFMG)


def test_an_override_applies_as_a_whole():
    common = (
        'kv_cache_quant_config { quant_layers: ["k_proj", "v_proj"]\n'
        "  calibration_config { ifmr_quantize { max_percentile: 0.9 asymmetric: true } } }\n"
    )
    config = json.loads(from_text(common + OVERRIDE % ("v_proj", "ifmr_quantize {}")))
    assert config["k_proj"]["kv_data_quant_config"]["max_percentile"] == 0.9
    assert config["v_proj"] == json.loads(document(1, True, v_proj=IFMR))["v_proj"]


def test_quant_layers_is_not_used_beside_a_definition(caplog):
    Path("cali.cfg").write_text('kv_cache_quant_config { quant_layers: "v_proj" }')
    amct.create_quant_cali_config("config.json", MODEL, NAMES, "cali.cfg")
    assert "k_proj" not in json.loads(Path("config.json").read_text())
    assert caplog.messages == ["quant_layers is not used: config_defination cali.cfg decides"]


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        (None, TypeError, "got None; or give a config_defination"),
        (["k_proj"], TypeError, "quant_layers: expected {"),
        (
            {"kv_cache_layers": ["k_proj"]},
            TypeError,
            'the key "kv_cache_layers"; did you mean "kv_cache_quant_layers"?',
        ),
        ({}, RuntimeError, "there is nothing to calibrate"),
        ({"kv_cache_quant_layers": []}, RuntimeError, "there is nothing to calibrate"),
        ({"kv_cache_quant_layers": "k_proj"}, ValueError, "expected a list of str, got 'k_proj'"),
        ({"kv_cache_quant_layers": [1]}, ValueError, "expected a list of str, got [1]"),
        (
            {"kv_cache_quant_layers": ["k_prj"]},
            ValueError,
            "['kv_cache_quant_layers'][0]: expected the name of a layer of the model, "
            'got "k_prj"; did you mean "k_proj"?',
        ),
        (
            {"kv_cache_quant_layers": ["k_proj", "conv"]},
            ValueError,
            '[1]: expected a layer of type Linear, got "conv", a Conv2d',
        ),
        (
            {"kv_cache_quant_layers": ["k_proj", "k_proj"]},
            ValueError,
            'expected each name once, got "k_proj" twice',
        ),
    ],
    ids=str,
)
def test_quant_layers_is_refused(argument, error, message):
    Path("config.json").write_text("mine")
    with pytest.raises(error, match=re.escape(message)):
        amct.create_quant_cali_config("config.json", MODEL, argument)
    assert Path("config.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", RuntimeError, "cali.cfg: expected at least one layer to calibrate, found none"),
        ("batch_nun: 1", text_format.ParseError, 'cali.cfg:1: .*; did you mean "batch_num"\\?'),
        ("batch_num: 0 " + OVERRIDE % ("k_proj", ""), ValueError, "batch_num: .*, got 0"),
        (
            'kv_cache_quant_config { quant_layers: "k_prj" }',
            ValueError,
            r'kv_cache_quant_config.quant_layers\[0\]: .*; did you mean "k_proj"\?',
        ),
        (OVERRIDE % ("conv", ""), ValueError, r"configs\[0\].layer_name: .*type Linear, got"),
        (
            2 * (OVERRIDE % ("k_proj", "")),
            ValueError,
            r"override_layers_configs\[1\].layer_name: expected each name once",
        ),
        (
            OVERRIDE % ("k_proj", "ifmr_quantize { min_percentile: 0.5 }"),
            ValueError,
            r"configs\[0\].kv_data_quant_config.ifmr_quantize.min_percentile: .*, got 0.5",
        ),
        (
            OVERRIDE % ("k_proj", "ifmr_quantize { search_range_start: 0 }"),
            ValueError,
            r"ifmr_quantize.search_range_start: expected \[start, end\] with 0 < start < end",
        ),
        (
            "kv_cache_quant_config { quant_layers: 'k_proj' calibration_config {"
            " ifmr_quantize { search_step: 0.7 } } }",
            ValueError,
            r"calibration_config.ifmr_quantize.search_step: expected at most 0.6",
        ),
        (
            OVERRIDE % ("k_proj", "hfmg_quantize { num_of_bins: 1000 }"),
            ValueError,
            r"hfmg_quantize.num_of_bins: expected 1024, 2048, 4096 or 8192, got 1000",
        ),
    ],
    ids=[
        "no layer",
        "unknown field",
        "no batch",
        "unknown name",
        "no Linear",
        "twice",
        "percentile",
        "search range",
        "search step",
        "bins",
    ],
)
def test_a_simplified_configuration_is_refused(text, error, message):
    Path("config.json").write_text("mine")
    with pytest.raises(error, match=message):
        from_text(text)
    assert Path("config.json").read_text() == "mine"


def test_a_mistake_of_the_common_section_is_reported_once():
    names = 'quant_layers: ["k_proj", "v_proj"]'
    wrong = "calibration_config { hfmg_quantize { num_of_bins: 1 } }"
    with pytest.raises(ValueError, match="num_of_bins: expected 1024") as caught:
        from_text(f"kv_cache_quant_config {{ {names} {wrong} }}")
    assert str(caught.value).count("num_of_bins") == 1


@pytest.mark.parametrize("name", ["batch_num", "version"])
def test_a_layer_with_the_name_of_a_global_key_is_refused(name):
    model = nn.ModuleDict({name: nn.Linear(8, 4)})
    Path("cali.cfg").write_text(f'kv_cache_quant_config {{ quant_layers: "{name}" }}')
    for arguments in (
        {"quant_layers": {"kv_cache_quant_layers": [name]}},
        {"config_defination": "cali.cfg"},
    ):
        with pytest.raises(ValueError, match=f"{name}: this layer has the name of a global key"):
            amct.create_quant_cali_config("config.json", model, **arguments)


def test_the_definition_is_not_written_over():
    text = 'kv_cache_quant_config { quant_layers: "k_proj" }'
    Path("cali.cfg").write_text(text)
    with pytest.raises(ValueError, match="config_defination: './cali.cfg' is config_file"):
        amct.create_quant_cali_config("cali.cfg", MODEL, config_defination="./cali.cfg")
    assert Path("cali.cfg").read_text() == text


def test_a_missing_definition_is_named():
    with pytest.raises(FileNotFoundError, match=r"none\.cfg"):
        amct.create_quant_cali_config("config.json", MODEL, config_defination="none.cfg")


def layer(**params):
    return {"k_proj": {"kv_data_quant_config": params}}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({}, RuntimeError, "expected at least one layer"),
        ({"k_prj": {}}, ValueError, 'did you mean "k_proj"'),
        ({"conv": {}}, ValueError, "expected a layer of type Linear"),
        ({"batch_num": "1", **layer()}, TypeError, 'batch_num: expected an integer, got "1"'),
        ({"k_proj": {"kv_data": {}}}, ValueError, "k_proj.kv_data: expected one of kv_data_quant"),
        (layer(act_algo="kl"), ValueError, 'act_algo: expected "ifmr" or "hfmg", got "kl"'),
        (layer(max_percentile=0.5), ValueError, "max_percentile: .* above 0.5 and at most 1"),
        (layer(min_percentile=1.1), ValueError, "min_percentile: .* above 0.5 and at most 1"),
        (layer(search_range=[1.3, 0.7]), ValueError, "search_range: .*0 < start < end"),
        (layer(search_range=[-1, 0.7]), ValueError, "search_range: .*0 < start < end"),
        (layer(search_step=0), ValueError, "search_step: expected a number above 0"),
        (layer(quant_granularity=2), ValueError, "quant_granularity: expected 0 or 1, got 2"),
        (layer(quant_granularity="channels"), TypeError, "quant_granularity: expected an int"),
        (layer(asymmetric=1), TypeError, "asymmetric: expected true or false, got 1"),
        (layer(num_of_bins=4096), ValueError, 'with act_algo "ifmr", got "num_of_bins", a key of'),
        (layer(num_bits=8), ValueError, 'got "num_bits"'),
    ],
    ids=str,
)
def test_a_json_file_is_refused(content, error, message):
    Path("config.json").write_text(json.dumps(content))
    with pytest.raises(error, match=message) as caught:
        amct.create_quant_cali_model("config.json", "record.txt", MODEL)
    assert str(caught.value).startswith("config.json: ")
    assert not Path("record.txt").exists()


@pytest.mark.parametrize("entry", [{}, {"kv_data_quant_config": {}}], ids=str)
def test_what_a_layer_does_not_say_has_its_default(entry):
    Path("config.json").write_text(json.dumps({"k_proj": entry}))
    amct.create_quant_cali_model("config.json", "record.txt", MODEL)
    assert "has seen 0 of 1" in Path("record.txt").read_text()


def test_the_granularity_may_be_a_word():
    amct.create_quant_cali_config("config.json", MODEL, NAMES)
    config = json.loads(Path("config.json").read_text())
    config["k_proj"]["kv_data_quant_config"]["quant_granularity"] = "per_channel"
    Path("config.json").write_text(json.dumps(config))
    observing = amct.create_quant_cali_model("config.json", "record.txt", MODEL)
    observing["k_proj"](torch.randn(3, 8))
    observing["v_proj"](torch.randn(3, 8))
    cache = Records.load("record.txt").kv_cache
    assert (len(cache["k_proj"].scale), len(cache["v_proj"].scale)) == (4, 1)
