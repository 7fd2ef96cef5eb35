"""The JSON configuration of QAT: what is generated, what is read, what is refused and how."""

import json

import pytest
from model_facts import FACTS, NAMES

from amct_pytorch.config import RetrainConfig
from amct_pytorch.config.limits import types_that
from amct_pytorch.config.retrain_layer import (
    RetrainDataConfig,
    RetrainLayerConfig,
    RetrainWeightConfig,
)
from amct_pytorch.graph import Layer, ModelFacts

GENERATED = """\
{
    "version":1,
    "batch_num":1,
    "fc":{
        "retrain_enable":true,
        "retrain_data_config":{
            "algo":"ulq_quantize",
            "dst_type":"INT8"
        },
        "retrain_weight_config":{
            "algo":"arq_retrain",
            "channel_wise":false,
            "dst_type":"INT8"
        }
    },
    "a.conv":{
        "retrain_enable":true,
        "retrain_data_config":{
            "algo":"ulq_quantize",
            "dst_type":"INT8"
        },
        "retrain_weight_config":{
            "algo":"arq_retrain",
            "channel_wise":true,
            "dst_type":"INT8"
        }
    }
}"""
GLOBALS = {"version": 1, "batch_num": 1}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Reads a configuration given as an object or as text; messages begin with `retrain.json: `."""
    monkeypatch.chdir(tmp_path)

    def load(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "retrain.json").write_text(text)
        return RetrainConfig.load("retrain.json", FACTS)

    return load


def layer(name="conv2", **entry):
    return {**GLOBALS, name: entry}


def data(name="conv2", **params):
    return layer(name, retrain_data_config=params)


def weight(name="conv2", **params):
    return layer(name, retrain_weight_config=params)


def types(act, wts, name="conv2"):
    return layer(
        name,
        retrain_data_config={"dst_type": act},
        retrain_weight_config={"dst_type": wts},
    )


# --- generate ----------------------------------------------------------------------------------


def test_generated_file_has_the_exact_text_in_the_order_of_the_model():
    layers = {
        "fc": Layer("fc", "Linear", None, True, 1, 8, 2),
        "a.conv": Layer("a.conv", "Conv2d", None, True, 1, 3, 8),
    }
    facts = ModelFacts(layers, modules={"a.conv": "Conv2d", "fc": "Linear"})
    assert RetrainConfig.generate(facts).dumps() == GENERATED


def test_generated_file_reads_back_equal(tmp_path):
    config = RetrainConfig.generate(FACTS)
    config.save(str(tmp_path / "config.json"))
    read = RetrainConfig.load(str(tmp_path / "config.json"), FACTS)
    assert read == config
    assert read.dumps() == config.dumps()


def test_generate_enables_all_that_can_be_quantized():
    config = RetrainConfig.generate(FACTS)
    assert list(config.enabled) == [name for name in FACTS.layers if name in NAMES]


def test_a_model_without_a_quantizable_layer_is_refused():
    facts = ModelFacts({"unused": FACTS.layers["unused"]}, {"unused": "Conv2d"})
    with pytest.raises(ValueError, match=r"(?s)no layer that can be quantized:.*unused \(Conv2d\)"):
        RetrainConfig.generate(facts)


@pytest.mark.parametrize("name", ["version", "batch_num", "shift_n"])
def test_a_layer_with_the_name_of_a_global_key_is_refused(name):
    facts = ModelFacts({name: Layer(name, "Linear", None)}, {name: "Linear"})
    with pytest.raises(ValueError, match=f"{name}: this layer has the name of a global key"):
        RetrainConfig.generate(facts)


def test_a_layer_may_have_the_name_of_a_global_key_of_ptq():
    facts = ModelFacts({"do_fusion": Layer("do_fusion", "Linear", None)}, {"do_fusion": "Linear"})
    assert list(RetrainConfig.generate(facts).enabled) == ["do_fusion"]


# --- what is read ------------------------------------------------------------------------------


def test_an_empty_entry_has_the_defaults_and_is_enabled(load):
    assert load(layer()).enabled["conv2"] == RetrainLayerConfig(
        retrain_enable=True,
        retrain_data_config=RetrainDataConfig(
            algo="ulq_quantize", clip_max=None, clip_min=None, fixed_min=None, dst_type="INT8"
        ),
        retrain_weight_config=RetrainWeightConfig(
            algo="arq_retrain", channel_wise=True, dst_type="INT8"
        ),
        shift_n=None,
    )


@pytest.mark.parametrize("name", NAMES)
def test_channel_wise_is_the_default_where_the_type_allows_it(load, name):
    weights = load(layer(name)).enabled[name].retrain_weight_config
    assert weights.channel_wise is (FACTS.layers[name].kind not in ("Linear", "AvgPool2d"))


def test_missing_optional_globals_have_their_defaults(load):
    config = load(layer())
    assert (config.fakequant_precision_mode, config.shift_n) == ("DEFAULT", False)


def test_a_layer_that_is_not_listed_is_not_trained(load):
    assert list(load(layer()).layers) == ["conv2"]


def test_a_disabled_layer_is_listed_but_not_enabled(load):
    config = load({**layer("conv1", retrain_enable=False), **layer("conv2")})
    assert list(config.layers) == ["conv1", "conv2"]
    assert list(config.enabled) == ["conv2"]


def test_all_keys_are_read_and_written_in_order(load):
    document = {
        "version": 1,
        "batch_num": 4,
        "fakequant_precision_mode": "FORCE_FP16_QUANT",
        "shift_n": True,
        "conv2": {
            "retrain_enable": True,
            "retrain_data_config": {
                "algo": "ulq_quantize",
                "clip_max": 0.1,
                "clip_min": -0.2,
                "fixed_min": False,
                "dst_type": "INT8",
            },
            "retrain_weight_config": {
                "algo": "ulq_retrain",
                "channel_wise": False,
                "dst_type": "INT4",
            },
            "shift_n": False,
        },
    }
    backwards = {key: document[key] for key in reversed(document)}
    assert load(backwards).dumps() == json.dumps(document, indent=4, separators=(",", ":"))


def test_globals_are_written_only_when_they_are_not_the_default(load):
    document = {**layer(), "fakequant_precision_mode": "DEFAULT", "shift_n": False}
    assert list(json.loads(load(document).dumps())) == ["version", "batch_num", "conv2"]


@pytest.mark.parametrize(
    ("act", "wts", "bits"),
    [("INT8", "INT8", (8, 8)), ("INT16", "INT8", (16, 8)), ("INT8", "INT4", (8, 4)),
     ("INT4", "INT4", (4, 4))],
)  # fmt: skip
def test_the_four_pairs_of_types(load, act, wts, bits):
    entry = load(types(act, wts)).enabled["conv2"]
    assert (entry.retrain_data_config.num_bits, entry.retrain_weight_config.num_bits) == bits


@pytest.mark.parametrize(
    "document",
    [
        data(clip_max=1.5, clip_min=-0.5),
        data(clip_max=None, clip_min=None),
        data(fixed_min=True),
        data(fixed_min=None),
        data("pool", dst_type="INT4"),  # no weights that it has to fit
        data("fc", dst_type="INT16"),
        *(weight(name, dst_type="INT4") for name in ("conv2", "conv1d", "conv3d", "up", "fc")),
        weight("fc", algo="ulq_retrain", channel_wise=False),
        weight("pool", algo="arq_retrain", channel_wise=False, dst_type="INT8"),
        layer(shift_n=True),
        layer(shift_n=None),
        {**layer("conv3d"), **types("INT16", "INT8", "conv2")},
        {
            **layer(),
            "pool": {"retrain_enable": False, "retrain_data_config": {"dst_type": "INT16"}},
        },
    ],
    ids=json.dumps,
)
def test_accepted(load, document):
    assert load(document).enabled


def test_one_document_leaves_nothing_behind_for_the_next(load):
    load({**layer(), "fakequant_precision_mode": "FORCE_FP16_QUANT"})
    assert load(layer("conv1")).fakequant_precision_mode == "DEFAULT"
    with pytest.raises(ValueError, match="version: expected an integer, found none"):
        load({"batch_num": 1, "conv1": {}})


# --- what is refused ---------------------------------------------------------------------------

REFUSED_GLOBALS = [
    ({**layer(), "version": 2}, ValueError, "version: expected 1, got 2"),
    ({**layer(), "version": True}, TypeError, "version: expected an integer, got true"),
    ({"batch_num": 1, "conv2": {}}, ValueError, "version: expected an integer, found none"),
    ({"version": 1, "conv2": {}}, ValueError, "batch_num: expected an integer, found none"),
    ({**layer(), "batch_num": 0}, ValueError, "batch_num: expected an integer above 0, got 0"),
    ({**layer(), "batch_num": -1}, ValueError, "batch_num: expected an integer above 0, got -1"),
    ({**layer(), "batch_num": True}, TypeError, "batch_num: expected an integer, got true"),
    ({**layer(), "batch_num": 1.0}, TypeError, "batch_num: expected an integer, got 1.0"),
    (
        {**layer(), "fakequant_precision_mode": "FP16"},
        ValueError,
        'fakequant_precision_mode: expected "DEFAULT" or "FORCE_FP16_QUANT", got "FP16"',
    ),
    ({**layer(), "shift_n": 1}, TypeError, "shift_n: expected true or false, got 1"),
    ({**layer(), "batch_mum": 1}, ValueError, 'got "batch_mum"; did you mean "batch_num"?'),
    (layer("conv9"), ValueError, 'conv9: expected the name of a layer or a global key, got "con'),
    (layer("relu"), ValueError, "relu: expected a layer of type Conv1d, Conv2d, Conv3d"),
    (layer("unused"), ValueError, "unused: this Conv2d cannot be quantized: the forward pass"),
    (GLOBALS, ValueError, "No layer retrain enabled: expected at least one layer with"),
    (layer(retrain_enable=False), ValueError, "No layer retrain enabled"),
]

DATA_KEYS = "algo, clip_max, clip_min, fixed_min, dst_type"
LAYER_KEYS = "retrain_enable, retrain_data_config, retrain_weight_config, shift_n"
REFUSED_PARAMETERS = [
    (layer(retrain_enable=1), TypeError, "conv2.retrain_enable: expected true or false, got 1"),
    ({**GLOBALS, "conv2": 1}, TypeError, "conv2: expected an object, got 1"),
    (layer(retrain_data_config=[]), TypeError, "retrain_data_config: expected an object, got []"),
    (layer(retrain_weight_config=8), TypeError, "retrain_weight_config: expected an object, got"),
    (layer(shift_n="yes"), TypeError, 'conv2.shift_n: expected true or false, got "yes"'),
    (
        layer(retrain_enabled=True),
        ValueError,
        f"conv2.retrain_enabled: expected one of {LAYER_KEYS}, "
        'got "retrain_enabled"; did you mean "retrain_enable"?',
    ),
    (
        layer(dst_type="INT8"),
        ValueError,
        f'conv2.dst_type: expected one of {LAYER_KEYS}, got "dst_type", a key of retrain_data_conf',
    ),
    *(
        (layer(**{key: value}), ValueError, f"conv2.{key}: expected no such key, got {shown}: prun")
        for key, value, shown in [
            ("regular_prune_enable", False, "false"),
            ("regular_prune_config", {"prune_type": "x"}, '{"prune_type": "x"}'),
        ]
    ),
    (
        data(algo="ifmr"),
        ValueError,
        'retrain_data_config.algo: expected "ulq_quantize", got "ifmr"',
    ),
    (data(algo=1), TypeError, 'retrain_data_config.algo: expected "ulq_quantize", got 1'),
    (
        data(clip_mx=1.0),
        ValueError,
        f"conv2.retrain_data_config.clip_mx: expected one of {DATA_KEYS}, "
        'got "clip_mx"; did you mean "clip_max"?',
    ),
    (data(channel_wise=True), ValueError, 'got "channel_wise", a key of retrain_weight_config'),
    (
        data(clip_max=0.5),
        ValueError,
        "conv2.retrain_data_config: expected clip_max and clip_min, or none of them, got {",
    ),
    (data(clip_min=-0.5), ValueError, "expected clip_max and clip_min, or none of them"),
    (
        data(clip_max=1, clip_min=-1.0),
        TypeError,
        "conv2.retrain_data_config.clip_max: expected a number with a fraction, like 0.5, got 1",
    ),
    (data(clip_max=1.0, clip_min=-1), TypeError, "clip_min: expected a number with a fraction"),
    (data(clip_max=0.0, clip_min=-1.0), ValueError, "clip_max: expected a number above 0, got 0.0"),
    (data(clip_max=1.0, clip_min=0.0), ValueError, "clip_min: expected a number below 0, got 0.0"),
    (data(clip_max=float("inf"), clip_min=-1.0), ValueError, "clip_max: expected a finite number"),
    (data(fixed_min=0), TypeError, "fixed_min: expected true or false, got 0"),
    (
        data(dst_type="INT6"),
        ValueError,
        'retrain_data_config.dst_type: expected "INT4", "INT8" or "INT16", got "INT6"',
    ),
    (data(dst_type=8), TypeError, 'dst_type: expected "INT4", "INT8" or "INT16", got 8'),
    (
        weight(algo="arq_quantize"),
        ValueError,
        'retrain_weight_config.algo: expected "arq_retrain" or "ulq_retrain", got "arq_quantize"',
    ),
    (weight(channel_wise=1), TypeError, "channel_wise: expected true or false, got 1"),
    (weight(channel_wize=True), ValueError, 'did you mean "channel_wise"?'),
    (
        weight(dst_type="INT16"),
        ValueError,
        'conv2.retrain_weight_config.dst_type: expected "INT4" or "INT8", got "INT16"',
    ),
]

INT16 = types_that(lambda capability: capability.int16)
CHANNELS = types_that(lambda capability: capability.channel_wise)
REFUSED_CAPABILITIES = [
    (
        types("INT4", "INT8"),
        'conv2.retrain_data_config.dst_type: expected "INT8" or "INT16", got "INT4": '
        "activations are INT8 or INT16 beside INT8 weights",
    ),
    (types("INT16", "INT4"), 'dst_type: expected "INT4" or "INT8", got "INT16": activations are'),
    (
        data("conv3d", dst_type="INT16"),
        'conv3d.retrain_data_config.dst_type: expected "INT8", got "INT16": '
        f"16-bit activations are for {INT16}, not Conv3d",
    ),
    (data("pool", dst_type="INT16"), f"16-bit activations are for {INT16}, not AvgPool2d"),
    (data("fc_plain", dst_type="INT16"), "a Linear has 16-bit activations only with a bias"),
    (data("conv2", clip_max=1e39, clip_min=-1.0), "expected a magnitude from 1.18e-38 to 8.51e+37"),
    (
        data("conv2", clip_max=1e-50, clip_min=-1.0),
        "expected a magnitude from 1.18e-38 to 8.51e+37",
    ),
    (
        weight("fc", channel_wise=True),
        "fc.retrain_weight_config.channel_wise: expected false, got true: one scale per channel is "
        f"for {CHANNELS}, not Linear",
    ),
    (
        weight("pool", channel_wise=True),
        "pool.retrain_weight_config.channel_wise: expected false, got true: AvgPool2d has no wei",
    ),
    (
        weight("depthwise", dst_type="INT4"),
        'depthwise.retrain_weight_config.dst_type: expected "INT8", got "INT4": '
        "4-bit weights need groups=1, this layer has groups=4",
    ),
    *(
        (
            weight(name, dst_type="INT4"),
            f"weights need an even number of inputs, this layer has {n}",
        )
        for name, n in [("conv1", 3), ("up_odd", 5), ("fc_odd", 5)]
    ),
]


@pytest.mark.parametrize(
    ("document", "error", "message"),
    REFUSED_GLOBALS + REFUSED_PARAMETERS + [(d, ValueError, m) for d, m in REFUSED_CAPABILITIES],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_refused(load, document, error, message):
    with pytest.raises(error) as caught:
        load(document)
    assert type(caught.value) is error
    assert str(caught.value).startswith("retrain.json: ")
    assert message in str(caught.value)


def test_all_mistakes_are_reported_in_the_order_of_the_file_missing_keys_first(load):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load({"version": 1, "batch_mum": 2, "conv2": {"retrain_data_config": {"algo": "ulq"}}})
    assert str(caught.value).splitlines() == [
        "retrain.json: batch_num: expected an integer, found none",
        'retrain.json: batch_mum: expected the name of a layer or a global key, got "batch_mum"; '
        'did you mean "batch_num"?',
        'retrain.json: conv2.retrain_data_config.algo: expected "ulq_quantize", got "ulq"',
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"version":1,"version":1}', "version"),
        ('{"conv2":{"retrain_enable":true,"retrain_enable":true}}', "conv2.retrain_enable"),
    ],
    ids=["global", "layer"],
)
def test_a_key_twice_is_refused(load, text, path):
    with pytest.raises(ValueError, match=f"retrain.json: {path}: expected each key once"):
        load(text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        RetrainConfig.load(str(tmp_path / "none.json"), FACTS)
