"""The JSON configuration of PTQ: what is generated, what is read, what is refused and how."""

import json
import logging

import pytest
from model_facts import FACTS, NAMES

from amct_pytorch.capability import BY_KIND, KINDS
from amct_pytorch.config import QuantConfig
from amct_pytorch.config.layer import AdaConfig, ArqConfig, HfmgConfig, IfmrConfig
from amct_pytorch.graph import Layer, ModelFacts

GENERATED = """\
{
    "version":1,
    "batch_num":2,
    "activation_offset":true,
    "do_fusion":true,
    "skip_fusion_layers":[],
    "a.conv":{
        "quant_enable":false,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "channel_wise":true,
            "wts_algo":"arq_quantize"
        }
    },
    "fc":{
        "quant_enable":true,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "channel_wise":false,
            "wts_algo":"arq_quantize"
        }
    }
}"""

# From the guide of the toolkit: no num_bits, joint_quant, algorithms before and after their keys.
DOCUMENTED = """\
{
    "version":1,
    "batch_num":2,
    "activation_offset":true,
    "joint_quant":false,
    "do_fusion":true,
    "skip_fusion_layers":[],
    "conv1":{
        "quant_enable":true,
        "activation_quant_params":{
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[0.7, 1.3],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":false
        },
        "weight_quant_params":{"wts_algo":"arq_quantize", "channel_wise":true}
    },
    "conv2":{
        "quant_enable":true,
        "activation_quant_params":{"act_algo":"hfmg", "num_of_bins":4096, "asymmetric":false},
        "weight_quant_params":{"wts_algo":"arq_quantize", "channel_wise":false}
    }
}"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Reads a configuration given as an object or as text; messages begin with `config.json: `."""
    monkeypatch.chdir(tmp_path)

    def load(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text)
        return QuantConfig.load("config.json", FACTS)

    return load


def layer(name="conv2", **entry):
    return {name: {"quant_enable": True, **entry}}


def act(name="conv2", **params):
    return layer(name, activation_quant_params=params)


def wts(name="conv2", **params):
    return layer(name, weight_quant_params=params)


ADA = {"wts_algo": "ada_quantize"}
TYPES = ", ".join(KINDS)
IFMR_KEYS = (
    "num_bits, max_percentile, min_percentile, search_range, search_step, act_algo, asymmetric"
)


# --- generate ----------------------------------------------------------------------------------


def test_generated_file_has_the_exact_text():
    layers = {
        "fc": Layer("fc", "Linear", None, True, 1, 8, 2),
        "a.conv": Layer("a.conv", "Conv2d", None, True, 1, 3, 8),
    }
    facts = ModelFacts(layers, modules={"a.conv": "Conv2d", "fc": "Linear"})
    assert QuantConfig.generate(facts, skip_layers=["a.conv"], batch_num=2).dumps() == GENERATED


def test_generated_file_reads_back_equal(tmp_path):
    config = QuantConfig.generate(FACTS)
    config.save(str(tmp_path / "config.json"))
    assert QuantConfig.load(str(tmp_path / "config.json"), FACTS) == config


def test_generate_leaves_out_what_cannot_be_quantized():
    assert sorted(QuantConfig.generate(FACTS).layers) == NAMES


def test_skipped_layers_are_listed_but_not_enabled():
    config = QuantConfig.generate(FACTS, skip_layers=["conv1"])
    assert sorted({*config.enabled, "conv1"}) == NAMES
    assert not config.layers["conv1"].quant_enable


def test_a_skipped_layer_may_be_one_that_stays_float_anyway():
    assert "unused" not in QuantConfig.generate(FACTS, skip_layers=["unused"]).layers


@pytest.mark.parametrize("offset", [True, False])
def test_generate_writes_asymmetric_into_every_layer(offset):
    layers = QuantConfig.generate(FACTS, activation_offset=offset).layers
    found = {name: entry.activation_quant_params.asymmetric for name, entry in layers.items()}
    assert found == {name: offset and name != "conv3d" for name in NAMES}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_num": 0}, ValueError, "batch_num: expected an integer above 0, got 0"),
        ({"batch_num": -1}, ValueError, "batch_num: expected an integer above 0, got -1"),
        ({"batch_num": True}, TypeError, "batch_num: expected an integer, got true"),
        ({"batch_num": 1.0}, TypeError, "batch_num: expected an integer, got 1.0"),
        ({"activation_offset": 1}, TypeError, "activation_offset: expected true or false, got 1"),
        ({"skip_layers": "conv1"}, TypeError, "skip_layers: expected a list of str, got 'conv1'"),
        ({"skip_layers": [1]}, TypeError, "skip_layers: expected a list of str, got [1]"),
        (
            {"skip_layers": ["conv1", "con2"]},
            ValueError,
            'skip_layers[1]: expected the name of a layer of the model, got "con2"; '
            'did you mean "conv2"?',
        ),
        (
            {"skip_layers": ["relu"]},
            ValueError,
            f'skip_layers[0]: expected a layer of type {TYPES}, got "relu", a ReLU',
        ),
        (
            {"skip_layers": ["conv1", "conv1"]},
            ValueError,
            'skip_layers[1]: expected each name once, got "conv1" twice',
        ),
        ({"skip_layers": NAMES}, ValueError, "all layers that can be quantized are skipped: conv1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_generate_refuses(arguments, error, message):
    with pytest.raises(error) as caught:
        QuantConfig.generate(FACTS, **arguments)
    assert message in str(caught.value)


def test_generate_says_why_each_candidate_was_refused():
    facts = ModelFacts({"unused": FACTS.layers["unused"]}, {"unused": "Conv2d"})
    with pytest.raises(ValueError, match=r"(?s)no layer .*unused \(Conv2d\): the forward pass ne"):
        QuantConfig.generate(facts)


def test_generate_says_which_types_it_looked_for():
    with pytest.raises(ValueError, match="it has no module of the types Conv1d, Conv2d"):
        QuantConfig.generate(ModelFacts({}, {"relu": "ReLU"}))


@pytest.mark.parametrize("name", ["version", "batch_num", "skip_fusion_layers", "joint_quant"])
def test_a_layer_with_the_name_of_a_global_key_is_refused(name):
    facts = ModelFacts({name: Layer(name, "Linear", None)}, {name: "Linear"})
    with pytest.raises(ValueError, match=f"{name}: this layer has the name of a global key"):
        QuantConfig.generate(facts)


# --- what is read ------------------------------------------------------------------------------


def test_the_documented_sample_loads(load, caplog):
    with caplog.at_level(logging.INFO):
        config = load(DOCUMENTED)
    assert config.batch_num == 2
    assert config.enabled["conv1"].activation_quant_params == IfmrConfig(asymmetric=False)
    assert config.enabled["conv2"].activation_quant_params == HfmgConfig(asymmetric=False)
    assert config.enabled["conv1"].weight_quant_params == ArqConfig(channel_wise=True)
    assert config.enabled["conv2"].weight_quant_params == ArqConfig(channel_wise=False)
    assert "config.json: joint_quant is false" in caplog.text


def test_missing_globals_have_their_defaults(load):
    config = load(layer())
    assert (config.version, config.batch_num, config.activation_offset) == (1, 1, True)
    assert (config.do_fusion, config.skip_fusion_layers) == (True, ())
    assert config.fakequant_precision_mode == "DEFAULT"


def test_an_entry_without_parameters_has_the_defaults(load):
    entry = load(layer("fc")).enabled["fc"]
    assert entry.dmq_balancer_param is None
    assert entry.activation_quant_params == IfmrConfig(
        num_bits=8,
        max_percentile=0.999999,
        min_percentile=0.999999,
        search_range=(0.7, 1.3),
        search_step=0.01,
        asymmetric=True,
    )
    assert entry.weight_quant_params == ArqConfig(num_bits=8, channel_wise=False)


def test_ada_keys_have_their_defaults(load):
    assert load(wts(**ADA)).enabled["conv2"].weight_quant_params == AdaConfig(
        reg_param=0.01,
        warm_start=0.2,
        num_iteration=10000,
        beta_range=(20.0, 2.0),
        channel_wise=True,
    )


def test_num_of_bins_alone_means_hfmg(load):
    activation = load(act(num_of_bins=1024)).enabled["conv2"].activation_quant_params
    assert activation == HfmgConfig(asymmetric=True, num_of_bins=1024)


def test_an_entry_without_quant_enable_is_not_quantized(load, caplog):
    config = load({"conv1": {}, **layer("conv2")})
    assert list(config.enabled) == ["conv2"]
    assert "config.json: no quant_enable for conv1: not quantized" in caplog.text


@pytest.mark.parametrize(
    ("offset", "own", "effective"),
    [(None, None, True), (True, None, True), (False, None, False), (True, False, False),
     (False, True, True)],
)  # fmt: skip
def test_asymmetric_of_the_layer_wins_over_activation_offset(load, offset, own, effective):
    document = act(**{} if own is None else {"asymmetric": own})
    if offset is not None:
        document["activation_offset"] = offset
    assert load(document).enabled["conv2"].activation_quant_params.asymmetric is effective


def test_conv3d_is_symmetric_whatever_activation_offset_says(load):
    activation = load(act("conv3d")).enabled["conv3d"].activation_quant_params
    assert activation.asymmetric is False


def test_fp16_mode_is_read_and_written(load):
    config = load({"fakequant_precision_mode": "FORCE_FP16_QUANT", **layer()})
    assert list(json.loads(config.dumps()))[:6] == [
        "version",
        "batch_num",
        "activation_offset",
        "do_fusion",
        "fakequant_precision_mode",
        "skip_fusion_layers",
    ]


def test_every_layer_key_is_written_in_order(load):
    config = load(layer(dmq_balancer_param=0.5, weight_quant_params=ADA))
    entry = json.loads(config.dumps())["conv2"]
    assert list(entry) == [
        "quant_enable",
        "dmq_balancer_param",
        "activation_quant_params",
        "weight_quant_params",
    ]
    assert list(entry["weight_quant_params"]) == [
        "num_bits",
        "reg_param",
        "warm_start",
        "num_iteration",
        "beta_range",
        "channel_wise",
        "wts_algo",
    ]


def test_hfmg_keys_are_written_in_order(load):
    entry = json.loads(load(act(act_algo="hfmg")).dumps())["conv2"]["activation_quant_params"]
    assert list(entry) == ["num_bits", "act_algo", "asymmetric", "num_of_bins"]


@pytest.mark.parametrize(
    "document",
    [
        {"batch_num": 3, **layer()},
        {"do_fusion": False, **layer()},
        {"skip_fusion_layers": ["conv1", "conv1d", "conv3d"], **layer()},
        {"skip_fusion_layers": ["unused"], **layer()},
        layer(dmq_balancer_param=0.2),
        layer(dmq_balancer_param=0.8),
        layer("conv3d", dmq_balancer_param=0.5),
        *(act(num_bits=bits) for bits in (4, 8, 16)),
        *(act(name, num_bits=16) for name in ("conv1d", "up1d", "up", "fc")),
        act(max_percentile=1),
        act(min_percentile=0.50001),
        act(search_range=[1, 2], search_step=1),
        act(search_step=0.6),  # 1.3 - 0.7 in decimals
        *(act(num_of_bins=bins) for bins in (1024, 2048, 4096, 8192)),
        *(wts(num_bits=bits) for bits in (4, 6, 7, 8)),
        *(wts(name, num_bits=4) for name in ("conv1d", "conv3d", "up1d", "up", "fc", "pool")),
        *(wts(name, channel_wise=True) for name in ("conv1d", "conv3d", "up1d", "up")),
        wts(channel_wise=False),
        *(wts(name, **ADA) for name in ("conv2", "up", "fc")),
        *(wts(**ADA, num_bits=bits) for bits in (4, 6, 7, 8)),
        wts("fc", **ADA, num_bits=4),
        wts(**ADA, num_iteration=0, reg_param=0.5, warm_start=0.5, beta_range=[3, 1]),
        {"conv3d": {"quant_enable": False, "activation_quant_params": {"num_bits": 16}}, **layer()},
    ],
    ids=json.dumps,
)
def test_accepted(load, document):
    assert load(document).enabled


# --- what is refused ---------------------------------------------------------------------------

REFUSED_GLOBALS = [
    ({"version": 2}, ValueError, "version: expected 1, got 2"),
    ({"version": "1"}, TypeError, 'version: expected an integer, got "1"'),
    ({"version": True}, TypeError, "version: expected an integer, got true"),
    ({"batch_num": 0}, ValueError, "batch_num: expected an integer above 0, got 0"),
    ({"batch_num": 1.0}, TypeError, "batch_num: expected an integer, got 1.0"),
    ({"batch_num": True}, TypeError, "batch_num: expected an integer, got true"),
    ({"activation_offset": 1}, TypeError, "activation_offset: expected true or false, got 1"),
    ({"do_fusion": "yes"}, TypeError, 'do_fusion: expected true or false, got "yes"'),
    (
        {"fakequant_precision_mode": "FP16"},
        ValueError,
        'fakequant_precision_mode: expected "DEFAULT" or "FORCE_FP16_QUANT", got "FP16"',
    ),
    (
        {"fakequant_precision_mode": 16},
        TypeError,
        'fakequant_precision_mode: expected "DEFAULT" or "FORCE_FP16_QUANT", got 16',
    ),
    (
        {"skip_fusion_layers": "conv1"},
        TypeError,
        'skip_fusion_layers: expected a list, got "conv1"',
    ),
    ({"skip_fusion_layers": [1]}, TypeError, "skip_fusion_layers[0]: expected a string, got 1"),
    (
        {"skip_fusion_layers": ["conv1", "conv1"]},
        ValueError,
        'skip_fusion_layers[1]: expected each name once, got "conv1" twice',
    ),
    (
        {"skip_fusion_layers": ["conv9"]},
        ValueError,
        'skip_fusion_layers[0]: expected the name of a layer of the model, got "conv9"; did you',
    ),
    (
        {"skip_fusion_layers": ["fc"]},
        ValueError,
        'skip_fusion_layers[0]: expected a layer of type Conv1d, Conv2d, Conv3d, got "fc", a',
    ),
    (
        {"skip_fusion_layers": ["relu"]},
        ValueError,
        f'skip_fusion_layers[0]: expected a layer of type {TYPES}, got "relu", a ReLU',
    ),
    ({"joint_quant": True}, ValueError, "joint_quant: expected false, got true: layers are"),
    ({"joint_quant": "no"}, TypeError, 'joint_quant: expected false, got "no"'),
    ({"weight_offset": False}, ValueError, "weight_offset: expected the name of a layer or a"),
    ({"tensor_quantize": []}, ValueError, "tensor_quantize: expected the name of a layer or a"),
    ({"batch_mum": 1}, ValueError, 'got "batch_mum"; did you mean "batch_num"?'),
    (
        layer("conv9"),
        ValueError,
        'conv9: expected the name of a layer or a global key, got "conv9"',
    ),
    (layer("relu"), ValueError, f'relu: expected a layer of type {TYPES}, got "relu", a ReLU'),
    (
        layer("alias"),
        ValueError,
        'expected the first name of a module, got "alias", another name of',
    ),
    (
        layer("unused"),
        ValueError,
        "unused: this Conv2d cannot be quantized: the forward pass never runs it",
    ),
]

REFUSED_PARAMETERS = [
    ({"conv2": 1}, TypeError, "conv2: expected an object, got 1"),
    ({"conv2": {"quant_enable": 1}}, TypeError, "quant_enable: expected true or false, got 1"),
    (
        layer(quant_enabled=True),
        ValueError,
        "conv2.quant_enabled: expected one of quant_enable, dmq_balancer_param, "
        "activation_quant_params, weight_quant_params, "
        'got "quant_enabled"; did you mean "quant_enable"?',
    ),
    (
        layer(dmq_balancer_param=1),
        TypeError,
        "dmq_balancer_param: expected a number with a fraction",
    ),
    (layer(dmq_balancer_param=0.1), ValueError, "expected a number from 0.2 to 0.8, got 0.1"),
    (layer(dmq_balancer_param=0.9), ValueError, "expected a number from 0.2 to 0.8, got 0.9"),
    (layer(activation_quant_params=8), TypeError, "activation_quant_params: expected an object"),
    (layer(weight_quant_params=[]), TypeError, "weight_quant_params: expected an object, got []"),
    (
        act(num_bits=7),
        ValueError,
        "conv2.activation_quant_params.num_bits: expected 4, 8 or 16, got",
    ),
    (act(num_bits=True), TypeError, "num_bits: expected an integer, got true"),
    (act(num_bits="8"), TypeError, 'num_bits: expected an integer, got "8"'),
    (
        act(max_percentile=0.5),
        ValueError,
        "max_percentile: expected a number above 0.5 and at most",
    ),
    (act(max_percentile=1.1), ValueError, "at most 1, got 1.1"),
    (act(max_percentile="0.9"), TypeError, 'max_percentile: expected a number, got "0.9"'),
    (act(min_percentile=0.5), ValueError, "min_percentile: expected a number above 0.5"),
    (act(search_range=0.7), TypeError, "search_range: expected a list of 2 numbers, got 0.7"),
    (act(search_range=[0.7]), ValueError, "search_range: expected a list of 2 numbers, got [0.7]"),
    (act(search_range=["a", 1]), TypeError, 'search_range[0]: expected a number, got "a"'),
    (
        act(search_range=[0, 1]),
        ValueError,
        "expected [start, end] with 0 < start < end, got [0, 1]",
    ),
    (
        act(search_range=[1, 1]),
        ValueError,
        "expected [start, end] with 0 < start < end, got [1, 1]",
    ),
    (act(search_range=[1, float("inf")]), ValueError, "search_range[1]: expected a finite number"),
    (act(search_step=0), ValueError, "search_step: expected a number above 0, got 0"),
    (act(search_step=0.61), ValueError, "search_step: expected at most 0.6, the width of search_r"),
    (act(search_step=1e-9), ValueError, "search_step: expected at least 5.72e-7, for 1048576 cand"),
    (act(search_range=[0.7, 0.705]), ValueError, "search_step: expected at most 0.005"),
    (act(act_algo="kl"), ValueError, 'act_algo: expected "ifmr" or "hfmg", got "kl"'),
    (act(act_algo=1), TypeError, 'act_algo: expected "ifmr" or "hfmg", got 1'),
    (act(num_of_bins=100), ValueError, "num_of_bins: expected 1024, 2048, 4096 or 8192, got 100"),
    (act(asymmetric="no"), TypeError, 'asymmetric: expected true or false, got "no"'),
    (act(asymmetric=None), TypeError, "asymmetric: expected true or false, got null"),
    (
        act(act_algo="ifmr", num_of_bins=1024),
        ValueError,
        f'num_of_bins: expected one of {IFMR_KEYS} with act_algo "ifmr", '
        'got "num_of_bins", a key of act_algo "hfmg"',
    ),
    (
        act(act_algo="hfmg", max_percentile=1.0),
        ValueError,
        "max_percentile: expected one of num_bits, act_algo, asymmetric, num_of_bins with act_a",
    ),
    (
        act(num_of_bins=1024, search_step=0.1),
        ValueError,
        "search_step: expected one of num_bits, act",
    ),
    (act(max_percentil=1.0), ValueError, 'got "max_percentil"; did you mean "max_percentile"?'),
    (
        layer(num_bits=8),
        ValueError,
        "conv2.num_bits: expected one of quant_enable, dmq_balancer_param, "
        'activation_quant_params, weight_quant_params, got "num_bits", a key of act_algo "ifmr"',
    ),
    (wts(quant_enable=True), ValueError, 'got "quant_enable", a key of the layer'),
    (wts(num_bits=5), ValueError, "weight_quant_params.num_bits: expected 4, 6, 7 or 8, got 5"),
    (wts(num_bits=8.0), TypeError, "weight_quant_params.num_bits: expected an integer, got 8.0"),
    (wts(channel_wise=1), TypeError, "channel_wise: expected true or false, got 1"),
    (
        wts(wts_algo="nuq"),
        ValueError,
        'wts_algo: expected "arq_quantize" or "ada_quantize", got "nuq"',
    ),
    (wts(reg_param=0.1), ValueError, 'got "reg_param", a key of wts_algo "ada_quantize"'),
    (
        wts(**ADA, reg_param=1),
        ValueError,
        "reg_param: expected a number between 0 and 1, both excl",
    ),
    (wts(**ADA, reg_param="x"), TypeError, 'reg_param: expected a number, got "x"'),
    (
        wts(**ADA, warm_start=0),
        ValueError,
        "warm_start: expected a number between 0 and 1, both exc",
    ),
    (wts(**ADA, num_iteration=-1), ValueError, "num_iteration: expected an integer of at least 0"),
    (wts(**ADA, num_iteration=1.5), TypeError, "num_iteration: expected an integer, got 1.5"),
    (
        wts(**ADA, beta_range=[2, 20]),
        ValueError,
        "beta_range: expected [start, end] with start > en",
    ),
    (wts(**ADA, beta_range=[2, 0]), ValueError, "with start > end > 0, got [2, 0]"),
    (wts(**ADA, num_bits=5), ValueError, "num_bits: expected 4, 6, 7 or 8, got 5"),
]

INT16 = ", ".join(kind for kind in KINDS if BY_KIND[kind].int16)
CHANNEL_WISE = ", ".join(kind for kind in KINDS if BY_KIND[kind].channel_wise)
REFUSED_CAPABILITIES = [
    (
        act("conv3d", num_bits=16),
        "conv3d.activation_quant_params.num_bits: expected 4 or 8, got 16: "
        f"16-bit activations are for {INT16}, not Conv3d",
    ),
    (act("pool", num_bits=16), f"16-bit activations are for {INT16}, not AvgPool2d"),
    (act("fc_plain", num_bits=16), "got 16: a Linear has 16-bit activations only with a bias"),
    (act("conv3d", asymmetric=True), "asymmetric: expected false, got true: activations of Conv3d"),
    (
        layer("pool", dmq_balancer_param=0.5),
        "pool.dmq_balancer_param: expected none, got 0.5: AvgPool2d has no weights to balance with",
    ),
    (
        wts("fc", channel_wise=True),
        "fc.weight_quant_params.channel_wise: expected false, got true: one scale per channel is "
        f"for {CHANNEL_WISE}, not Linear",
    ),
    (wts("pool", channel_wise=True), "channel_wise: expected false, got true"),
    *(
        (wts(name, **ADA), f'expected "arq_quantize", got "ada_quantize": AdaRound is for {who}')
        for name in ("conv1d", "conv3d", "up1d", "pool")
        for who in ["Conv2d, ConvTranspose2d, Linear, not"]
    ),
    *(
        (wts(name, num_bits=6 if name == "fc" else 7), "6- and 7-bit weights are for Conv2d, not")
        for name in ("conv1d", "conv3d", "up1d", "up", "fc", "pool")
    ),
    (wts("up", **ADA, num_bits=6), "expected 8, got 6: 6- and 7-bit weights are for Conv2d, not"),
    (wts("fc_odd", **ADA, num_bits=4), "4-bit weights need an even number of inputs, this layer"),
    (wts("depthwise", num_bits=4), "4-bit weights need groups=1, this layer has groups=4"),
    (wts("conv1", num_bits=4), "4-bit weights need an even number of inputs, this layer has 3"),
    (wts("up_odd", num_bits=4), "4-bit weights need an even number of inputs, this layer has 5"),
    (wts("fc_odd", num_bits=4), "4-bit weights need an even number of inputs, this layer has 5"),
]


@pytest.mark.parametrize(
    ("document", "error", "message"),
    REFUSED_GLOBALS + REFUSED_PARAMETERS + [(d, ValueError, m) for d, m in REFUSED_CAPABILITIES],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_refused(load, document, error, message):
    with pytest.raises(error) as caught:
        load({**layer("up"), **document})
    assert type(caught.value) is error
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


def test_all_mistakes_are_reported_in_the_order_of_the_file(load):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load({"conv9": {}, **act(num_bits=7), "batch_num": True})
    assert str(caught.value).splitlines() == [
        'config.json: conv9: expected the name of a layer or a global key, got "conv9"; '
        'did you mean "conv2"?',
        "config.json: conv2.activation_quant_params.num_bits: expected 4, 8 or 16, got 7",
        "config.json: batch_num: expected an integer, got true",
    ]


def test_a_long_list_of_mistakes_is_cut():
    facts = ModelFacts({f"fc{i}": Layer(f"fc{i}", "Linear", None) for i in range(30)}, {})
    with pytest.raises(TypeError, match="and 10 more"):
        QuantConfig.from_document(dict.fromkeys(facts.layers, 1), facts, "config.json")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"version":1,"version":1}', "version"),
        ('{"conv2":{"quant_enable":true,"quant_enable":true}}', "conv2.quant_enable"),
        (
            '{"conv2":{"weight_quant_params":{"num_bits":8,"num_bits":4}}}',
            "conv2.weight_quant_params.num_bits",
        ),
    ],
    ids=["global", "layer", "parameters"],
)
def test_a_key_twice_is_refused_at_any_level(load, text, path):
    with pytest.raises(ValueError, match=f"config.json: {path}: expected each key once"):
        load(text)


def test_a_syntax_error_keeps_its_type_and_names_the_file(load):
    with pytest.raises(json.JSONDecodeError, match=r"config.json: .* line 1 column 14"):
        load('{"version":1,}')


@pytest.mark.parametrize("text", ["[]", "1", "null"])
def test_a_file_that_holds_no_object_is_refused(load, text):
    with pytest.raises(TypeError, match=r"config\.json: expected an object, got"):
        load(text)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"version":1\xff}')
    with pytest.raises(ValueError, match=r"config.json: expected UTF-8 text"):
        QuantConfig.load(str(path), FACTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"batch_num":' + "9" * 5000 + "}", "expected numbers of a sensible length"),
        ('{"conv2":' + "[" * 100_000, "expected a few objects and lists inside each other"),
        ('{"conv2":' + "[" * 3000 + "]" * 3000 + "}", "expected a few objects and lists inside"),
    ],
    ids=["5000 digits", "too deep and cut off", "too deep"],
)
def test_what_python_cannot_read_is_refused_with_the_file(load, text, message):
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        load(text)


def test_no_enabled_layer_is_refused(load):
    with pytest.raises(RuntimeError, match="expected at least one layer with quant_enable true"):
        load({"conv2": {"quant_enable": False}})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        QuantConfig.load(str(tmp_path / "none.json"), FACTS)


@pytest.mark.parametrize("path", ["", "."], ids=["empty", "folder"])
def test_a_folder_is_refused(path):
    with pytest.raises(IsADirectoryError, match="expected a configuration file, got a folder"):
        QuantConfig.load(path, FACTS)
