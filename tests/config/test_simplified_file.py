"""The simplified configuration as YAML and JSON: the same messages as from protobuf text."""

import json

import pytest
import yaml
from model_facts import FACTS

from amct_pytorch.config.message_tree import fill_message
from amct_pytorch.config.messages import message_class
from amct_pytorch.config.simplified import load_simplified
from amct_pytorch.config.simplified_file import read_message
from amct_pytorch.config.simplified_kv import load_simplified_kv
from amct_pytorch.config.simplified_retrain import load_simplified_retrain
from amct_pytorch.graph import ModelFacts

PTQ = ("calibration_config_pytorch", "AMCTPytorchProto.AMCTConfig")
KV = ("quant_calibration_config_pytorch", "AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig")
QAT = ("retrain_config_pytorch", "AMCTPytorchProto.AMCTRetrainConfig")

TEXT = """
batch_num: 4
activation_offset: false
fakequant_precision_mode: FORCE_FP16_QUANT
skip_layers: "conv1"
skip_layers: "yes"
common_config {
  ifmr_quantize { search_range_start: 1 max_percentile: 0.9 dst_type: INT16 }
  arq_quantize { channel_wise: true quant_bits: 6 }
  dmq_balancer { }
}
override_layer_types { layer_type: "Linear" calibration_config { hfmg_quantize { } } }
override_layer_configs {
  layer_name: "0"
  calibration_config { ada_quantize { reg_param: 0.001 } }
}
"""
YAML = """
batch_num: 4
activation_offset: false
fakequant_precision_mode: FORCE_FP16_QUANT
skip_layers: [conv1, yes]
common_config:
  ifmr_quantize: {search_range_start: 1, max_percentile: 0.9, dst_type: INT16}
  arq_quantize: {channel_wise: true, quant_bits: 6}
  dmq_balancer: {}
override_layer_types:
  - layer_type: Linear
    calibration_config: {hfmg_quantize: {}}
override_layer_configs:
  - layer_name: "0"
    calibration_config: {ada_quantize: {reg_param: 1e-3}}
"""
# 11 lines that stand for 10 ** 10 words.
LAUGHS = "a0: &a0 x\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11)
)
JSON = json.dumps(yaml.safe_load(YAML.replace("1e-3", "0.001").replace("yes", '"yes"')))

QAT_TEXT = """
retrain_data_quant_config { ulq_quantize { clip_max_min { clip_max: 3 clip_min: -1.5 } } }
override_layer_types {
  layer_type: "Conv2d"
  retrain_weight_quant_config { ulq_retrain { dst_type: INT4 } }
  shift_n: true
}
"""
QAT_YAML = """
retrain_data_quant_config:
  ulq_quantize:
    clip_max_min: {clip_max: 3, clip_min: -1.5}
override_layer_types:
- layer_type: Conv2d
  retrain_weight_quant_config: {ulq_retrain: {dst_type: INT4}}
  shift_n: true
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a file of a name with a content; messages begin with its name."""
    monkeypatch.chdir(tmp_path)

    def read(name, content, message=PTQ):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return read_message(name, *message)[0]

    return read


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"), [("q.yaml", YAML), ("q.yml", YAML), ("Q.YAML", YAML), ("q.json", JSON)]
)
def test_the_same_message_as_from_protobuf_text(read, name, content):
    assert read(name, content) == read("quant.cfg", TEXT)


def test_the_same_message_of_training(read):
    assert read("q.yaml", QAT_YAML, QAT) == read("q.cfg", QAT_TEXT, QAT)


@pytest.mark.parametrize("name", ["q.txt", "q", "yaml"])
def test_every_other_suffix_is_protobuf_text(read, name):
    assert read(name, "batch_num: 3 do_fusion: true").batch_num == 3


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}", "---\n"])
def test_a_file_without_keys_is_the_default_configuration(read, content):
    assert read("q.yaml", content) == read("q.cfg", "")


def test_a_file_that_an_editor_of_windows_has_saved(read):
    assert read("q.yaml", "\ufeff# two\r\nbatch_num: 2\r\n").batch_num == 2


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-2", 0.01), ("1E-2", 0.01), (".01", 0.01), ("+0.01", 0.01), ("1.", 1), ("012", 12)],
)
def test_numbers_of_yaml(read, written, value):
    message = read("q.yaml", f"common_config: {{ada_quantize: {{reg_param: {written}}}}}")
    assert message.common_config.ada_quantize.reg_param == pytest.approx(value)


def test_an_anchor_says_once_what_two_overrides_share(read):
    message = read(
        "q.yaml",
        "override_layer_configs:\n"
        "- {layer_name: conv1, calibration_config: &own {hfmg_quantize: {}}}\n"
        "- {layer_name: conv2, calibration_config: *own}\n",
    )
    first, second = message.override_layer_configs
    assert first.calibration_config == second.calibration_config
    assert second.calibration_config.HasField("hfmg_quantize")


def test_a_yaml_file_stands_for_a_configuration(tmp_path):
    path = tmp_path / "quant.yaml"
    path.write_text("common_config: {arq_quantize: {quant_bits: 6}}\nskip_layer_types: [Linear]")
    config = load_simplified(str(path), FACTS)
    assert config.layers["conv1"].weight_quant_params.num_bits == 6
    assert not config.layers["fc"].quant_enable


def test_a_yaml_file_stands_for_a_configuration_of_training(tmp_path):
    path = tmp_path / "retrain.yaml"
    path.write_text("retrain_weight_quant_config: {ulq_retrain: {}}")
    config = load_simplified_retrain(str(path), FACTS)
    assert config.layers["conv1"].retrain_weight_config.algo == "ulq_retrain"


def test_a_yaml_file_stands_for_a_configuration_of_a_kv_cache(tmp_path):
    path = tmp_path / "kv.yaml"
    path.write_text("batch_num: 4\nkv_cache_quant_config: {quant_layers: [fc]}")
    facts = ModelFacts({"fc": FACTS.layers["fc"]}, {"fc": "Linear"}, {}, ("Linear",))
    config = load_simplified_kv(str(path), facts)
    assert (config.batch_num, list(config.layers)) == (4, ["fc"])


# --- what is refused ---------------------------------------------------------------------------

# YAML text, error, message after the file and the line, which both files give, and the line.
REFUSED = {
    "unknown field": (
        "batch_num: 1\nbatch_mum: 2",
        ValueError,
        2,
        "batch_mum: expected one of batch_num, activation_offset, skip_layers, skip_layer_types, "
        "fakequant_precision_mode, common_config, override_layer_types, override_layer_configs, "
        'do_fusion, skip_fusion_layers, got "batch_mum"; did you mean "batch_num"?',
    ),
    "unknown field inside": (
        "common_config:\n  arq_quantize:\n    quant_bit: 8",
        ValueError,
        3,
        "common_config.arq_quantize.quant_bit: expected one of channel_wise, quant_bits, got "
        '"quant_bit"; did you mean "quant_bits"?',
    ),
    "two of a oneof": (
        "common_config:\n  arq_quantize: {}\n  ada_quantize: {}",
        ValueError,
        3,
        "common_config.ada_quantize: expected either arq_quantize or ada_quantize, got both",
    ),
    "no calibration_config": (
        "override_layer_types:\n- {layer_type: Linear, calibration_config: {}}\n"
        "- layer_type: Conv2d",
        ValueError,
        3,
        "override_layer_types[1].calibration_config: required, found none",
    ),
    "no layer_name": (
        "override_layer_configs:\n- calibration_config: {}",
        ValueError,
        2,
        "override_layer_configs[0].layer_name: required, found none",
    ),
    "text for an integer": (
        "batch_num: many",
        TypeError,
        1,
        'batch_num: expected an integer from 0 to 4294967295, got "many"',
    ),
    "true for an integer": (
        "batch_num: true",
        TypeError,
        1,
        "batch_num: expected an integer from 0 to 4294967295, got true",
    ),
    "fraction for an integer": (
        "batch_num: 1.0",
        TypeError,
        1,
        "batch_num: expected an integer from 0 to 4294967295, got 1.0",
    ),
    "negative": (
        "batch_num: -1",
        ValueError,
        1,
        "batch_num: expected an integer from 0 to 4294967295, got -1",
    ),
    "number for true": (
        "do_fusion: 1",
        TypeError,
        1,
        "do_fusion: expected true or false, got 1",
    ),
    "text for true": (
        'do_fusion: "true"',
        TypeError,
        1,
        'do_fusion: expected true or false, got "true"',
    ),
    "true for a number": (
        "common_config: {ifmr_quantize: {search_step: true}}",
        TypeError,
        1,
        "common_config.ifmr_quantize.search_step: expected a number that float32 holds, got true",
    ),
    "too large a number": (
        "common_config: {ifmr_quantize: {search_step: 1.0e+39}}",
        ValueError,
        1,
        "common_config.ifmr_quantize.search_step: expected a number that float32 holds, got 1e+39",
    ),
    "number for a name": (
        "skip_layers:\n- conv1\n- 0",
        TypeError,
        3,
        "skip_layers[1]: expected a string, got 0; put it in quotes",
    ),
    "name for a list": (
        "skip_layers: conv1",
        TypeError,
        1,
        'skip_layers: expected a list, got "conv1"',
    ),
    "object for a list": (
        "override_layer_types: {layer_type: Linear}",
        TypeError,
        1,
        'override_layer_types: expected a list, got {"layer_type": "Linear"}',
    ),
    "nothing for an object": (
        "common_config:\n  arq_quantize: null",
        TypeError,
        2,
        "common_config.arq_quantize: expected an object, got null; {} is one with all defaults",
    ),
    "list for an object": (
        "common_config: []",
        TypeError,
        1,
        "common_config: expected an object, got []",
    ),
    "unknown name of an enum": (
        "common_config: {ifmr_quantize: {dst_type: INT4}}",
        ValueError,
        1,
        'common_config.ifmr_quantize.dst_type: expected "INT8" or "INT16", got "INT4"; did you',
    ),
    "list for an enum": (
        "fakequant_precision_mode: [1]",
        TypeError,
        1,
        'fakequant_precision_mode: expected "FORCE_FP16_QUANT", got [1]',
    ),
    "object for an enum": (
        "fakequant_precision_mode: {}",
        TypeError,
        1,
        'fakequant_precision_mode: expected "FORCE_FP16_QUANT", got {}',
    ),
    "number of an enum": (
        "common_config: {ifmr_quantize: {dst_type: 2}}",
        TypeError,
        1,
        'common_config.ifmr_quantize.dst_type: expected "INT8" or "INT16", got 2',
    ),
}


@pytest.mark.parametrize(("content", "error", "line", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(read, content, error, line, text):
    for name, content_, place in [
        ("q.yaml", content, f"q.yaml:{line}: "),
        ("q.json", json.dumps(yaml.safe_load(content)), "q.json: "),
    ]:
        with pytest.raises(error) as caught:
            read(name, content_)
        assert type(caught.value) is error
        assert str(caught.value).startswith(place + text)


def test_all_mistakes_are_reported(read):
    with pytest.raises(TypeError) as caught:
        read("q.yaml", "batch_num: x\ncommon_config:\n  arq_quantise: {}\nskip_layer: []\n")
    found = [line.split(": expected")[0] for line in str(caught.value).splitlines()]
    assert found == [
        "q.yaml:1: batch_num",
        "q.yaml:3: common_config.arq_quantise",
        "q.yaml:4: skip_layer",
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("batch_num: 1\nbatch_num: 2", "q.yaml:2: batch_num: expected each key once in an object"),
        (
            "common_config:\n  arq_quantize: {quant_bits: 4,\n    quant_bits: 8}",
            "q.yaml:3: common_config.arq_quantize.quant_bits: expected each key once",
        ),
        ("batch_num: [1", "q.yaml:1: expected YAML: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "q.yaml:2: expected YAML: "),
        ("a: 1\n---\nb: 1", "q.yaml:2: expected YAML: but found another document"),
        ("a: *b", "q.yaml:1: expected YAML: found undefined alias"),
        ("skip_layers: &a [*a]", "q.yaml:1: skip_layers[0]: expected a value, got an alias of"),
        ("batch_num: !!python/name:os.system", "batch_num: expected a plain value, got one tagged"),
        ("batch_num: !!int x", "q.yaml:1: batch_num: expected a plain value, got one tagged tag:"),
        ("? [1]\n: 2", "q.yaml:1: expected a word before the colon, got a list or an object"),
        (b"batch_num: \xff", "q.yaml: expected UTF-8 text"),
        ("batch_num: " + "9" * 5000, "q.yaml:1: batch_num: expected a number of a sensible length"),
        ("[" * 3000, "q.yaml: expected a few objects and lists inside each other, got too many"),
        (LAUGHS, "q.yaml: expected at most 1000000 values, got more, by aliases of aliases"),
        ("a: \x01", "q.yaml: expected YAML: "),
    ],
    ids=[
        "key twice",
        "key twice inside",
        "cut off",
        "tab",
        "two documents",
        "unknown alias",
        "inside itself",
        "python object",
        "wrong tag",
        "list as key",
        "not UTF-8",
        "5000 digits",
        "too deep",
        "aliases of aliases",
        "control character",
    ],
)
def test_yaml_that_does_not_parse_is_refused(read, content, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read("q.yaml", content)
    assert text in str(caught.value)
    assert str(caught.value).startswith("q.yaml")


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "1:30", "0x10", "2024-01-01", ".inf"])
def test_words_that_old_yaml_takes_for_something_else_are_strings(read, word):
    assert list(read("q.yaml", f"skip_layers: [{word}]").skip_layers) == [word]


def test_json_with_a_key_twice_is_refused(read):
    with pytest.raises(ValueError, match=r"q\.json: batch_num: expected each key once"):
        read("q.json", '{"batch_num": 1, "batch_num": 2}')


def test_json_that_does_not_parse_is_refused(read):
    with pytest.raises(json.JSONDecodeError, match=r"q\.json: .*line 1"):
        read("q.json", "batch_num: 1")


@pytest.mark.parametrize("name", ["none.yaml", "none.json", "none.cfg"])
def test_a_missing_file_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=name):
        read_message(name, *PTQ)


# --- every field -------------------------------------------------------------------------------


def filled(descriptor):
    """An object with a value in every field of a message, the last of every oneof."""
    tree = {}
    chosen = {f.containing_oneof.name: f.name for f in descriptor.fields if f.containing_oneof}
    for field in descriptor.fields:
        if field.containing_oneof and chosen[field.containing_oneof.name] != field.name:
            continue
        if field.message_type:
            value = filled(field.message_type)
        elif field.enum_type:
            value = field.enum_type.values[-1].name
        else:
            value = {field.CPPTYPE_STRING: "x", field.CPPTYPE_BOOL: True}.get(field.cpp_type, 3)
        tree[field.name] = [value] if field.default_value == [] else value
    return tree


@pytest.mark.parametrize("of", [PTQ, QAT, KV], ids=["ptq", "qat", "kv"])
def test_every_field_can_be_set(of):
    message = message_class(*of)()
    assert list(fill_message(message, filled(message.DESCRIPTOR))) == []
    assert {field.name for field, _ in message.ListFields()} == set(
        message.DESCRIPTOR.fields_by_name
    )
