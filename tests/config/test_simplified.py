"""The simplified configuration: precedence, what is left out with a warning, what is refused."""

import json
import re
import time

import pytest
from google.protobuf.text_format import ParseError
from model_facts import FACTS, NAMES

from amct_pytorch.capability import BY_KIND, KINDS
from amct_pytorch.config import QuantConfig
from amct_pytorch.config.layer import AdaConfig, ArqConfig, HfmgConfig, IfmrConfig
from amct_pytorch.config.simplified import load_simplified
from amct_pytorch.graph import Layer, ModelFacts

TYPES = ", ".join(KINDS)
CHANNEL_WISE = ", ".join(kind for kind in KINDS if BY_KIND[kind].channel_wise)
INT16 = ", ".join(kind for kind in KINDS if BY_KIND[kind].int16)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Reads a simplified configuration given as text; messages begin with `quant.cfg`."""
    monkeypatch.chdir(tmp_path)

    def load(text, facts=FACTS):
        (tmp_path / "quant.cfg").write_text(text)
        return load_simplified("quant.cfg", facts)

    return load


def activation(config, name="conv2"):
    return config.layers[name].activation_quant_params


def weight(config, name="conv2"):
    return config.layers[name].weight_quant_params


def common(section):
    return f"common_config {{ {section} }}"


def for_type(kind, section):
    return f'override_layer_types {{ layer_type: "{kind}" calibration_config {{ {section} }} }}\n'


def for_layer(name, section):
    return f'override_layer_configs {{ layer_name: "{name}" calibration_config {{ {section} }} }}\n'


# --- what a file stands for --------------------------------------------------------------------


def test_an_empty_file_is_the_default_configuration(load):
    assert load("") == QuantConfig.generate(FACTS)


def test_global_fields(load):
    config = load(
        "batch_num: 4 activation_offset: false do_fusion: false\n"
        'fakequant_precision_mode: FORCE_FP16_QUANT skip_fusion_layers: "conv1"\n'
    )
    assert (config.batch_num, config.activation_offset, config.do_fusion) == (4, False, False)
    assert config.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert config.skip_fusion_layers == ("conv1",)


def test_the_documented_sample_loads_for_a_model_with_linear_and_pooling(load, caplog):
    config = load(common("arq_quantize { channel_wise: true }"))
    assert weight(config, "conv2").channel_wise
    assert not weight(config, "fc").channel_wise
    assert caplog.messages == [
        "quant.cfg: common_config.arq_quantize.channel_wise: left out for "
        f"fc, fc_plain, fc_odd: one scale per channel is for {CHANNEL_WISE}, not Linear",
        "quant.cfg: common_config.arq_quantize.channel_wise: left out for pool: one scale per "
        f"channel is for {CHANNEL_WISE}, not AvgPool2d",
    ]


def test_ifmr_fields(load):
    section = """ifmr_quantize {
        search_range_start: 0.8 search_range_end: 1.2 search_step: 0.02 max_percentile: 0.99
        min_percentile: 0.98 asymmetric: false dst_type: INT16 }"""
    assert activation(load(common(section))) == IfmrConfig(
        num_bits=16,
        max_percentile=0.99,
        min_percentile=0.98,
        search_range=(0.8, 1.2),
        search_step=0.02,
        asymmetric=False,
    )


def test_hfmg_fields(load):
    section = "hfmg_quantize { num_of_bins: 1024 asymmetric: false dst_type: INT16 }"
    expected = HfmgConfig(num_bits=16, num_of_bins=1024, asymmetric=False)
    assert activation(load(common(section))) == expected


def test_arq_fields(load):
    section = "arq_quantize { channel_wise: false quant_bits: 6 }"
    assert weight(load(common(section))) == ArqConfig(num_bits=6, channel_wise=False)


def test_ada_fields(load):
    section = """ada_quantize { num_iteration: 5 reg_param: 0.02 beta_range_start: 10
        beta_range_end: 3 warm_start: 0.1 channel_wise: false quant_bits: 6 }"""
    assert weight(load(common(section))) == AdaConfig(
        num_bits=6,
        num_iteration=5,
        reg_param=0.02,
        beta_range=(10.0, 3.0),
        warm_start=0.1,
        channel_wise=False,
    )


def test_empty_messages_have_the_defaults_of_the_schema(load):
    config = load(common("ada_quantize {} ifmr_quantize {} dmq_balancer {}"))
    assert weight(config) == AdaConfig(channel_wise=True)
    assert activation(config) == IfmrConfig(asymmetric=True)
    assert config.layers["conv2"].dmq_balancer_param == 0.5


def test_numbers_are_written_as_they_were_typed(load):
    text = load(common("ifmr_quantize { max_percentile: 0.9999 } ada_quantize {}")).dumps()
    params = json.loads(text)["conv2"]["activation_quant_params"]
    assert (params["max_percentile"], params["search_step"]) == (0.9999, 0.01)
    assert '"reg_param":0.01,' in text
    assert '"beta_range":[\n                20.0,\n                2.0\n            ]' in text


def test_the_result_is_a_json_file_that_loads(load, tmp_path):
    config = load(common("hfmg_quantize {} dmq_balancer {}") + 'skip_layers: "conv1"')
    config.save(str(tmp_path / "config.json"))
    assert QuantConfig.load(str(tmp_path / "config.json"), FACTS) == config


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        ('skip_layers: "conv1" skip_layers: "fc"', {"conv1", "fc"}),
        ('skip_layers: "unused"', set()),
        ('skip_layer_types: "Linear"', {"fc", "fc_plain", "fc_odd"}),
        ('skip_layer_types: "AvgPool2d" skip_layers: "conv1"', {"conv1", "pool"}),
    ],
)
def test_skipped_layers_are_listed_but_not_enabled(load, text, skipped):
    config = load(text)
    assert sorted(config.layers) == NAMES
    assert {name for name in NAMES if name not in config.enabled} == skipped


# --- precedence --------------------------------------------------------------------------------


def test_layer_override_wins_over_type_override_wins_over_common(load):
    config = load(
        common("arq_quantize { quant_bits: 8 }")
        + for_type("Conv2d", "arq_quantize { quant_bits: 7 }")
        + for_layer("conv2", "arq_quantize { quant_bits: 6 }")
    )
    found = [weight(config, name).num_bits for name in ("up", "conv1", "conv2")]
    assert found == [8, 7, 6]


def test_an_override_replaces_the_whole_section(load):
    config = load(
        common("hfmg_quantize {} dmq_balancer {}")
        + for_type("Conv2d", "arq_quantize { channel_wise: false }")
    )
    assert activation(config, "up").act_algo == "hfmg"
    assert activation(config, "conv2") == IfmrConfig(asymmetric=True)
    assert config.layers["conv2"].dmq_balancer_param is None


@pytest.mark.parametrize(
    ("text", "asymmetric"),
    [
        ("", True),
        ("activation_offset: false", False),
        ("activation_offset: false " + common("ifmr_quantize { asymmetric: true }"), True),
        (
            common("ifmr_quantize { asymmetric: false }") + for_type("Conv2d", "ifmr_quantize {}"),
            False,
        ),
        (
            common("ifmr_quantize { asymmetric: false }") + for_type("Conv2d", "arq_quantize {}"),
            False,
        ),
        (
            common("ifmr_quantize { asymmetric: false }") + for_layer("conv2", "hfmg_quantize {}"),
            True,
        ),
        (
            common("hfmg_quantize { asymmetric: false }") + for_layer("conv2", "hfmg_quantize {}"),
            False,
        ),
        (
            common("ifmr_quantize { asymmetric: false }")
            + for_layer("conv2", "ifmr_quantize { asymmetric: true }"),
            True,
        ),
    ],
    ids=[
        "default",
        "activation_offset",
        "common over activation_offset",
        "common for the same algorithm",
        "common for the default algorithm",
        "activation_offset for another algorithm",
        "common for hfmg",
        "own",
    ],
)
def test_asymmetric_falls_back(load, text, asymmetric):
    assert activation(load(text)).asymmetric is asymmetric


def test_conv3d_is_symmetric_whatever_common_says(load):
    assert not activation(load(common("ifmr_quantize {}")), "conv3d").asymmetric


# --- what is left out --------------------------------------------------------------------------

WITH_16_BITS = {"conv1", "conv2", "depthwise", "conv1d", "up1d", "up", "up_odd", "fc", "fc_odd"}


@pytest.mark.parametrize(
    ("section", "changed", "left_out"),
    [
        (
            "ifmr_quantize { dst_type: INT16 }",
            lambda c: c.activation_quant_params.num_bits == 16,
            {"conv3d", "fc_plain", "pool"},
        ),
        (
            "hfmg_quantize { dst_type: INT16 }",
            lambda c: c.activation_quant_params.num_bits == 16,
            {"conv3d", "fc_plain", "pool"},
        ),
        (
            "ifmr_quantize { asymmetric: true }",
            lambda c: c.activation_quant_params.asymmetric,
            {"conv3d"},
        ),
        (
            "arq_quantize { quant_bits: 6 }",
            lambda c: c.weight_quant_params.num_bits == 6,
            set(NAMES) - {"conv1", "conv2", "depthwise"},
        ),
        (
            "arq_quantize { quant_bits: 7 }",
            lambda c: c.weight_quant_params.num_bits == 7,
            set(NAMES) - {"conv1", "conv2", "depthwise"},
        ),
        (
            "arq_quantize { quant_bits: 4 }",
            lambda c: c.weight_quant_params.num_bits == 4,
            {"conv1", "depthwise", "up_odd", "fc_odd"},
        ),
        ("dmq_balancer {}", lambda c: c.dmq_balancer_param is not None, {"pool"}),
        (
            "ada_quantize {}",
            lambda c: c.weight_quant_params.wts_algo == "ada_quantize",
            {"conv1d", "conv3d", "up1d", "pool"},
        ),
        (
            "ada_quantize { channel_wise: true }",
            lambda c: c.weight_quant_params.channel_wise,
            {"fc", "fc_plain", "fc_odd", "pool"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_common_config_leaves_out_what_a_layer_cannot_do(load, caplog, section, changed, left_out):
    config = load(common(section))
    assert {name for name in NAMES if not changed(config.layers[name])} == left_out
    for name in left_out:
        assert any(name in message for message in caplog.messages)


def test_a_layer_without_ada_has_the_default_arq(load):
    config = load(common("ada_quantize { channel_wise: false }"))
    assert weight(config, "conv1d") == ArqConfig(channel_wise=True)


def test_a_layer_without_ada_keeps_the_bits_it_can_have(load):
    config = load(common("ada_quantize { quant_bits: 4 }"))
    assert weight(config, "conv1d") == ArqConfig(num_bits=4, channel_wise=True)
    config = load(common("ada_quantize { quant_bits: 6 }"))
    assert weight(config, "conv1d") == ArqConfig(num_bits=8, channel_wise=True)
    assert weight(config, "up") == AdaConfig(num_bits=8, channel_wise=True)


def test_a_warning_has_the_field_the_layers_and_the_reason(load, caplog):
    load(common("ifmr_quantize { dst_type: INT16 }") + 'skip_layer_types: "AvgPool2d"')
    assert caplog.messages == [
        "quant.cfg: common_config.ifmr_quantize.dst_type: left out for conv3d: 16-bit activations "
        f"are for {INT16}, not Conv3d",
        "quant.cfg: common_config.ifmr_quantize.dst_type: left out for fc_plain: a Linear has "
        "16-bit activations only with a bias, this one has none",
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (for_type("Linear", "ifmr_quantize { dst_type: INT16 }"), "fc_plain"),
        (for_type("Conv2d", "arq_quantize { quant_bits: 4 }"), "conv1"),
        (for_layer("depthwise", "arq_quantize { quant_bits: 4 }"), "depthwise"),
    ],
    ids=["16 bits without a bias", "4 bits of a type", "4 bits of a layer"],
)
def test_an_override_leaves_out_what_the_shape_of_a_layer_forbids(load, caplog, text, name):
    config = load(text)
    assert (activation(config, name).num_bits, weight(config, name).num_bits) == (8, 8)
    assert f": left out for {name}" in caplog.text


# --- what is refused ---------------------------------------------------------------------------

T = "override_layer_types[0].calibration_config"
L = "override_layer_configs[0].calibration_config"
REFUSED = [
    # names
    ('skip_layers: "conv9"', 'skip_layers[0]: expected the name of a layer of the model, got "con'),
    (
        'skip_layers: "relu"',
        f'skip_layers[0]: expected a layer of type {TYPES}, got "relu", a ReLU',
    ),
    (
        'skip_layers: "fc" skip_layers: "fc"',
        'skip_layers[1]: expected each name once, got "fc" twice',
    ),
    (
        'skip_layer_types: "Conv2D"',
        f'skip_layer_types[0]: expected one of {TYPES}, got "Conv2D"; did you mean "Conv2d"?',
    ),
    (
        'skip_layer_types: "Linear" skip_layer_types: "Linear"',
        'skip_layer_types[1]: expected each name once, got "Linear" twice',
    ),
    (
        "".join(f'skip_layer_types: "{kind}" ' for kind in TYPES.split(", ")),
        "all layers that can be quantized are skipped",
    ),
    (
        for_type("ReLU", ""),
        f'override_layer_types[0].layer_type: expected one of {TYPES}, got "ReLU',
    ),
    (
        for_type("Linear", "") * 2,
        'override_layer_types[1].layer_type: expected each name once, got "Linear" twice',
    ),
    (
        for_layer("fc1", ""),
        "override_layer_configs[0].layer_name: expected the name of a layer of the model, "
        'got "fc1"; did you mean "fc"?',
    ),
    (
        for_layer("relu", ""),
        f"override_layer_configs[0].layer_name: expected a layer of type {TYPES}, got",
    ),
    (
        for_layer("unused", ""),
        'layer_name: "unused" cannot be quantized: the forward pass never runs it',
    ),
    (
        for_layer("fc", "") * 2,
        'override_layer_configs[1].layer_name: expected each name once, got "fc" twice',
    ),
    ('skip_fusion_layers: "fc"', "skip_fusion_layers[0]: expected a layer of type Conv1d, Conv2d,"),
    (
        'skip_fusion_layers: "conv1" skip_fusion_layers: "conv1"',
        'skip_fusion_layers[1]: expected each name once, got "conv1" twice',
    ),
    # values
    ("batch_num: 0", "batch_num: expected an integer above 0, got 0"),
    (
        common("arq_quantize { quant_bits: 5 }"),
        "common_config.arq_quantize.quant_bits: expected 4, 6, 7 or 8, got 5",
    ),
    (
        common("hfmg_quantize { num_of_bins: 100 }"),
        "common_config.hfmg_quantize.num_of_bins: expected 1024, 2048, 4096 or 8192, got 100",
    ),
    (
        common("dmq_balancer { migration_strength: 0.9 }"),
        "common_config.dmq_balancer.migration_strength: expected a number from 0.2 to 0.8, got 0.9",
    ),
    (
        common("ifmr_quantize { max_percentile: 0.5 }"),
        "common_config.ifmr_quantize.max_percentile: expected a number above 0.5 and at most 1",
    ),
    (
        common("ifmr_quantize { search_range_start: 2 }"),
        "common_config.ifmr_quantize.search_range_start: expected [start, end] with 0 < start",
    ),
    (
        common("ifmr_quantize { search_range_end: inf }"),
        "common_config.ifmr_quantize.search_range_end: expected a finite number",
    ),
    (
        for_type("Conv2d", "ada_quantize { reg_param: 1 }"),
        f"{T}.ada_quantize.reg_param: expected a number between 0 and 1",
    ),
    (
        for_layer("conv2", "ada_quantize { beta_range_start: 1 }"),
        f"{L}.ada_quantize.beta_range_start: expected [start, end] with start > end > 0",
    ),
    # capabilities
    (
        for_type("Conv3d", "ifmr_quantize { asymmetric: true }"),
        f"{T}.ifmr_quantize.asymmetric: expected false, got true: activations of Conv3d are symm",
    ),
    (
        for_layer("conv3d", "hfmg_quantize { asymmetric: true }"),
        f"{L}.hfmg_quantize.asymmetric: expected false, got true",
    ),
    *(
        (
            text,
            f"{place}.arq_quantize.channel_wise: expected false, got true: one scale per channel",
        )
        for section in ["arq_quantize { channel_wise: true }"]
        for text, place in [
            (for_type("Linear", section), T),
            (for_type("AvgPool2d", section), T),
            (for_layer("fc", section), L),
            (for_layer("pool", section), L),
        ]
    ),
    (
        for_type("AvgPool2d", "dmq_balancer {}"),
        f"{T}.dmq_balancer.migration_strength: expected none, got 0.5: AvgPool2d has no weights",
    ),
    (for_layer("pool", "dmq_balancer {}"), f"{L}.dmq_balancer.migration_strength: expected none"),
    *(
        (text, f"{place}.ifmr_quantize.dst_type: expected INT8, got INT16: {why}")
        for section in ["ifmr_quantize { dst_type: INT16 }"]
        for text, place, why in [
            (for_type("Conv3d", section), T, "16-bit activations are for"),
            (for_type("AvgPool2d", section), T, "16-bit activations are for"),
            (for_layer("conv3d", section), L, "16-bit activations are for"),
            (for_layer("fc_plain", section), L, "a Linear has 16-bit activations only with a bias"),
        ]
    ),
    *(
        (for_type(kind, "ada_quantize {}"), f'{T}.ada_quantize: expected "arq_quantize", got "ada')
        for kind in ("Conv1d", "Conv3d", "ConvTranspose1d", "AvgPool2d")
    ),
    (for_layer("conv1d", "ada_quantize {}"), f'{L}.ada_quantize: expected "arq_quantize"'),
    *(
        (
            for_type(kind, f"arq_quantize {{ quant_bits: {bits} }}"),
            f"{T}.arq_quantize.quant_bits: expected 8, got {bits}: 6- and 7-bit weights are for",
        )
        for kind, bits in [("Conv1d", 6), ("Linear", 7), ("AvgPool2d", 6)]
    ),
    (
        for_layer("fc", "arq_quantize { quant_bits: 6 }"),
        f"{L}.arq_quantize.quant_bits: expected 8, got 6",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: value)
def test_refused(load, text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(text)
    without_lines = re.sub(r"^quant\.cfg:\d+:", "quant.cfg:", str(caught.value), flags=re.MULTILINE)
    assert message in without_lines
    assert without_lines.startswith("quant.cfg: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "batch_num: 1\nbatch_mum: 2",
            'quant.cfg:2: Message type "AMCTPytorchProto.AMCTConfig" has no field named '
            '"batch_mum"; did you mean "batch_num"?',
        ),
        (common("arq_quantize { quant_bit: 8 }"), '; did you mean "quant_bits"?'),
        ("batch_num: x", "quant.cfg:1: "),
        ("batch_num: -1", "quant.cfg:1: "),
        ("batch_num: 1\nbatch_num: 2", "quant.cfg:2: "),
        ("common_config {}\ncommon_config {}", "quant.cfg:2: "),
        (common("arq_quantize {}\nada_quantize {}"), "quant.cfg:2: "),
        (common("ifmr_quantize { dst_type: INT4 }"), "quant.cfg:1: "),
        ("common_config {", "quant.cfg:1: "),
        (
            'override_layer_types { layer_type: "Linear" }',
            "quant.cfg:1: override_layer_types[0].calibration_config: required, found none",
        ),
        (
            "override_layer_configs { calibration_config {} }",
            "quant.cfg:1: override_layer_configs[0].layer_name: required, found none",
        ),
    ],
    ids=[
        "unknown field",
        "unknown field inside",
        "no number",
        "negative",
        "field twice",
        "message twice",
        "two of a oneof",
        "unknown enum value",
        "cut off",
        "no calibration_config",
        "no layer_name",
    ],
)
def test_text_that_does_not_parse_is_refused(load, text, message):
    with pytest.raises(ParseError) as caught:
        load(text)
    assert message in str(caught.value)


def test_a_file_that_an_editor_of_windows_has_saved(load):
    assert load("\ufeff# two batches\r\nbatch_num: 2\r\n").batch_num == 2


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "quant.cfg").write_bytes(b"\xff")
    with pytest.raises(ParseError, match=r"quant\.cfg: expected UTF-8 text"):
        load_simplified(str(tmp_path / "quant.cfg"), FACTS)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.cfg"):
        load_simplified(str(tmp_path / "none.cfg"), FACTS)


def test_many_layers_with_an_override_each_take_well_under_a_second(load):
    names = [f"b.{index}.conv" for index in range(200)]
    layers = {name: Layer(name, "Conv2d", None, in_channels=4) for name in names}
    facts = ModelFacts(layers, dict.fromkeys(layers, "Conv2d"))
    section = "ifmr_quantize { dst_type: INT16 } arq_quantize { quant_bits: 6 } dmq_balancer {}"
    text = common(section) + "".join(
        f'skip_fusion_layers: "{skipped}" skip_layers: "{skipped}"'
        + for_layer(name, "hfmg_quantize {}")
        for skipped, name in zip(names[::2], names[1::2], strict=True)
    )
    start = time.process_time()
    assert len(load(text, facts).enabled) == 100
    assert time.process_time() - start < 1.0  # 0.02 s on one core of a laptop
