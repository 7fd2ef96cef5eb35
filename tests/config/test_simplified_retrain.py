"""The simplified configuration of QAT: precedence, what is left out, what is refused."""

import re

import pytest
from google.protobuf.text_format import ParseError
from model_facts import FACTS, NAMES

from amct_pytorch.capability import KINDS
from amct_pytorch.config import RetrainConfig
from amct_pytorch.config.limits import types_that
from amct_pytorch.config.retrain_layer import (
    RetrainDataConfig,
    RetrainLayerConfig,
    RetrainWeightConfig,
)
from amct_pytorch.config.simplified_retrain import load_simplified_retrain
from amct_pytorch.graph import ModelFacts

TYPES = ", ".join(KINDS)

# From the guide of the toolkit: global settings, and one override of each kind.
DOCUMENTED = """\
# global quantize parameter
retrain_data_quant_config: {
    ulq_quantize: {
        clip_max_min: {
            clip_max: 6.0
            clip_min: -6.0
        }
        fixed_min: true
    }
}
retrain_weight_quant_config: {
    arq_retrain: {
        channel_wise: true
    }
}
skip_layers: "conv1"
override_layer_types : {
    layer_type: "Linear"
    retrain_weight_quant_config: {
        arq_retrain: {
            channel_wise: false
        }
    }
}
override_layer_configs : {
    layer_name: "conv2"
    retrain_data_quant_config: {
        ulq_quantize: {
            clip_max_min: {
                clip_max: 3.0
                clip_min: -3.0
            }
        }
    }
}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Reads a simplified configuration given as text; messages begin with `retrain.cfg`."""
    monkeypatch.chdir(tmp_path)

    def load(text, facts=FACTS):
        (tmp_path / "retrain.cfg").write_text(text)
        return load_simplified_retrain("retrain.cfg", facts)

    return load


def ulq(fields):
    return f"retrain_data_quant_config {{ ulq_quantize {{ {fields} }} }}\n"


def arq(fields):
    return f"retrain_weight_quant_config {{ arq_retrain {{ {fields} }} }}\n"


def for_type(kind, section):
    return f'override_layer_types {{ layer_type: "{kind}" {section} }}\n'


def for_layer(name, section):
    return f'override_layer_configs {{ layer_name: "{name}" {section} }}\n'


def data(config, name="conv2"):
    return config.layers[name].retrain_data_config


def weight(config, name="conv2"):
    return config.layers[name].retrain_weight_config


def dst_types(config, name):
    return data(config, name).dst_type, weight(config, name).dst_type


# --- what a file stands for --------------------------------------------------------------------


def test_an_empty_file_is_the_default_configuration(load):
    assert load("").dumps() == RetrainConfig.generate(FACTS).dumps()


def test_the_documented_sample_loads(load):
    config = load(DOCUMENTED)
    assert data(config, "up") == RetrainDataConfig(clip_max=6.0, clip_min=-6.0, fixed_min=True)
    assert weight(config, "up") == RetrainWeightConfig(channel_wise=True)
    assert data(config, "fc") == RetrainDataConfig()
    assert not weight(config, "fc").channel_wise
    assert data(config, "conv2") == RetrainDataConfig(clip_max=3.0, clip_min=-3.0)
    assert set(config.layers) - set(config.enabled) == {"conv1"}


def test_global_channel_wise_is_left_out_for_types_without(load, caplog):
    config = load(arq("channel_wise: true"))
    assert {n for n in NAMES if not weight(config, n).channel_wise} == {
        "fc",
        "fc_plain",
        "fc_odd",
        "pool",
    }
    assert caplog.messages == [
        "retrain.cfg: retrain_weight_quant_config.arq_retrain.channel_wise: left out for "
        "fc, fc_plain, fc_odd: one scale per channel is for "
        f"{types_that(lambda c: c.channel_wise)}, not Linear",
        "retrain.cfg: retrain_weight_quant_config.arq_retrain.channel_wise: left out for "
        "pool: AvgPool2d has no weights",
    ]


def test_global_fields(load):
    config = load("batch_num: 4 fakequant_precision_mode: FORCE_FP16_QUANT shift_n: true")
    assert (config.version, config.batch_num) == (1, 4)
    assert (config.fakequant_precision_mode, config.shift_n) == ("FORCE_FP16_QUANT", True)
    assert config.layers["conv2"].shift_n is None


def test_ulq_fields(load):
    fields = "clip_max_min { clip_max: 0.1 clip_min: -0.7 } fixed_min: false dst_type: INT16"
    assert data(load(ulq(fields))) == RetrainDataConfig(
        clip_max=0.1, clip_min=-0.7, fixed_min=False, dst_type="INT16"
    )


@pytest.mark.parametrize("algorithm", ["arq_retrain", "ulq_retrain"])
def test_weight_fields(load, algorithm):
    fields = "channel_wise: false dst_type: INT4"
    config = load(f"retrain_weight_quant_config {{ {algorithm} {{ {fields} }} }}")
    expected = RetrainWeightConfig(algo=algorithm, channel_wise=False, dst_type="INT4")
    assert weight(config) == expected


def test_four_bits_for_both(load):
    assert dst_types(load(ulq("dst_type: INT4") + arq("dst_type: INT4")), "conv2") == (
        "INT4",
        "INT4",
    )


def test_the_result_is_a_json_file_that_loads(load, tmp_path):
    config = load(DOCUMENTED)
    config.save(str(tmp_path / "config.json"))
    assert RetrainConfig.load(str(tmp_path / "config.json"), FACTS) == config


# --- precedence --------------------------------------------------------------------------------


def test_layer_override_wins_over_type_override_wins_over_global(load):
    config = load(
        ulq("clip_max_min { clip_max: 1 clip_min: -1 }")
        + for_type("Conv2d", ulq("clip_max_min { clip_max: 2 clip_min: -1 }"))
        + for_layer("conv2", ulq("clip_max_min { clip_max: 3 clip_min: -1 }"))
    )
    assert [data(config, name).clip_max for name in ("up", "conv1", "conv2")] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "override",
    [
        for_type("Conv2d", arq("channel_wise: false")),
        for_layer("conv2", arq("channel_wise: false")),
        for_layer("conv2", arq("channel_wise: false")) + for_type("Conv2d", ulq("fixed_min: true")),
    ],
    ids=["type", "layer", "layer over type"],
)
def test_what_an_override_does_not_say_has_the_default(load, override):
    config = load(ulq("fixed_min: true") + override)
    assert data(config) == RetrainDataConfig()
    assert weight(config) == RetrainWeightConfig(channel_wise=False)


def test_an_empty_override_has_the_defaults(load):
    config = load(ulq("fixed_min: true") + arq("channel_wise: false") + for_layer("conv2", ""))
    assert config.layers["conv2"] == RetrainLayerConfig(
        retrain_weight_config=RetrainWeightConfig(channel_wise=True)
    )


def test_shift_n_of_an_override(load):
    config = load(
        for_type("Conv2d", "shift_n: true") + for_layer("conv1", "shift_n: false") + "shift_n: true"
    )
    found = [config.layers[name].shift_n for name in ("conv2", "conv1", "up")]
    assert found == [True, False, None]


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        ('skip_layers: "conv1" quant_skip_layers: "fc"', {"conv1", "fc"}),
        ('skip_layers: "conv1" quant_skip_layers: "conv1"', {"conv1"}),
        ('skip_layers: "unused"', set()),
        (
            'skip_layer_types: "Linear" quant_skip_types: "AvgPool2d"',
            {"fc", "fc_plain", "fc_odd", "pool"},
        ),
        ('skip_layer_types: "Linear" quant_skip_layers: "up"', {"fc", "fc_plain", "fc_odd", "up"}),
        ('skip_layers: "conv2"' + for_layer("conv2", ""), set()),
        ('quant_skip_types: "Linear"' + for_layer("fc", ""), {"fc_plain", "fc_odd"}),
        ('skip_layers: "fc"' + for_type("Linear", ""), set()),
        ('skip_layer_types: "Linear"' + for_type("Linear", ""), set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_skipped_layers_are_listed_but_not_enabled(load, caplog, text, skipped):
    config = load(text)
    assert sorted(config.layers) == NAMES
    assert {name for name in NAMES if name not in config.enabled} == skipped
    assert caplog.messages == []


@pytest.mark.parametrize(
    "field", ["skip_layers", "quant_skip_layers", "skip_layer_types", "quant_skip_types"]
)
def test_a_name_twice_in_a_list_of_skips_is_a_warning(load, caplog, field):
    name = "fc" if field.endswith("layers") else "Linear"
    config = load(f'{field}: "{name}" {field}: "{name}"')
    assert "fc" not in config.enabled
    text = f'retrain.cfg: {field}[1]: expected each name once, got "{name}" twice'
    assert caplog.messages == [text]


# --- what is left out --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "changed", "left_out"),
    [
        (ulq("dst_type: INT16"), ("INT16", "INT8"), {"conv3d", "fc_plain", "pool"}),
        (
            arq("dst_type: INT4"),
            ("INT8", "INT4"),
            {"conv1", "depthwise", "up_odd", "fc_odd"},
        ),
        (
            ulq("dst_type: INT4") + arq("dst_type: INT4"),
            ("INT4", "INT4"),
            {"conv1", "depthwise", "up_odd", "fc_odd"},
        ),
    ],
    ids=["A16W8", "A8W4", "A4W4"],
)
def test_types_are_left_out_where_a_layer_has_them_not(load, caplog, text, changed, left_out):
    config = load(text)
    assert {name for name in NAMES if dst_types(config, name) != changed} == left_out
    for name in left_out:
        assert any(name in message for message in caplog.messages)


def test_activations_of_4_bits_go_with_the_weights_that_were_left_out(load, caplog):
    config = load(ulq("dst_type: INT4") + arq("dst_type: INT4"))
    assert dst_types(config, "depthwise") == ("INT8", "INT8")
    assert dst_types(config, "pool") == ("INT4", "INT4")
    assert (
        "retrain.cfg: retrain_data_quant_config.ulq_quantize.dst_type: left out for "
        "conv1, depthwise, up_odd, fc_odd: activations are INT8 or INT16 beside INT8 weights"
    ) in caplog.messages


def test_only_channel_wise_is_left_out_where_there_are_no_weights(load, caplog):
    config = load("retrain_weight_quant_config { ulq_retrain { channel_wise: true } }")
    assert weight(config, "pool") == RetrainWeightConfig(algo="ulq_retrain", channel_wise=False)
    assert [m for m in caplog.messages if "pool" in m] == [
        "retrain.cfg: retrain_weight_quant_config.ulq_retrain.channel_wise: left out for pool: "
        "AvgPool2d has no weights"
    ]


def test_nothing_is_said_about_skipped_layers(load, caplog):
    load(ulq("dst_type: INT16") + 'skip_layers: "fc_plain" skip_layer_types: "AvgPool2d"')
    assert [message.split("left out for ")[1][:6] for message in caplog.messages] == ["conv3d"]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (for_type("Linear", ulq("dst_type: INT16")), "fc_plain", ("INT8", "INT8")),
        (for_type("Conv2d", arq("dst_type: INT4")), "conv1", ("INT8", "INT8")),
        (for_layer("depthwise", arq("dst_type: INT4")), "depthwise", ("INT8", "INT8")),
        (
            for_layer("depthwise", ulq("dst_type: INT4") + arq("dst_type: INT4")),
            "depthwise",
            ("INT8", "INT8"),
        ),
    ],
    ids=["16 bits without a bias", "4 bits of a type", "4 bits of a layer", "4 bits of both"],
)
def test_an_override_leaves_out_what_the_shape_of_a_layer_forbids(
    load, caplog, text, name, expected
):
    assert dst_types(load(text), name) == expected
    assert f": left out for {name}" in caplog.text


# --- what is refused ---------------------------------------------------------------------------

T, L = "override_layer_types[0]", "override_layer_configs[0]"
PRUNE = (
    "prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.3 } } }",
    "prune_config { n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: M4N2 } } }",
    "prune_config {}",
)
REFUSED = [
    # names
    ('skip_layers: "conv9"', 'skip_layers[0]: expected the name of a layer of the model, got "con'),
    ('skip_layers: "con2"', 'got "con2"; did you mean "conv2"?'),
    (
        'quant_skip_layers: "relu"',
        f'quant_skip_layers[0]: expected a layer of type {TYPES}, got "r',
    ),
    (
        'skip_layer_types: "Conv2D"',
        f'skip_layer_types[0]: expected one of {TYPES}, got "Conv2D"; did you mean "Conv2d"?',
    ),
    ('quant_skip_types: "Lin"', f'quant_skip_types[0]: expected one of {TYPES}, got "Lin"'),
    (for_type("ReLU", ""), f'{T}.layer_type: expected one of {TYPES}, got "ReLU"'),
    (
        for_type("Linear", "") * 2,
        'override_layer_types[1].layer_type: expected each name once, got "Linear" twice',
    ),
    (for_layer("fc1", ""), f'{L}.layer_name: expected the name of a layer of the model, got "fc1"'),
    (
        for_layer("fc", "") * 2,
        'override_layer_configs[1].layer_name: expected each name once, got "fc" twice',
    ),
    (
        for_layer("unused", ""),
        f'{L}.layer_name: "unused" cannot be quantized: the forward pass never runs it',
    ),
    # pruning
    *(
        (text, f"{place}prune_config: expected no such field: pruning is not part of")
        for prune in PRUNE
        for text, place in [
            (prune, "retrain.cfg: "),
            (for_type("Linear", prune), f"{T}."),
            (for_layer("fc", prune), f"{L}."),
        ]
    ),
    ('regular_prune_skip_layers: "fc"', "regular_prune_skip_layers: expected no such field: prun"),
    ('regular_prune_skip_types: "Linear"', "regular_prune_skip_types: expected no such field"),
    # values
    ("batch_num: 0", "batch_num: expected an integer above 0, got 0"),
    (
        ulq("clip_max_min { clip_max: 0 clip_min: -1 }"),
        "retrain_data_quant_config.ulq_quantize.clip_max_min.clip_max: expected a number above 0",
    ),
    (
        for_layer("fc", ulq("clip_max_min { clip_max: 1 clip_min: 0.1 }")),
        f"{L}.retrain_data_quant_config.ulq_quantize.clip_max_min.clip_min: expected a number "
        "below 0, got 0.1",
    ),
    (
        ulq("clip_max_min { clip_max: inf clip_min: -1 }"),
        "clip_max_min.clip_max: expected a finite number",
    ),
    (
        for_type("Conv2d", arq("dst_type: INT16")),
        f"{T}.retrain_weight_quant_config.arq_retrain.dst_type: "
        'expected "INT4" or "INT8", got "INT16"',
    ),
    # pairs of types
    (
        ulq("dst_type: INT4"),
        'retrain_data_quant_config.ulq_quantize.dst_type: expected "INT8" or "INT16", got "INT4": '
        "activations are INT8 or INT16 beside INT8 weights",
    ),
    (
        ulq("dst_type: INT16") + arq("dst_type: INT4"),
        'dst_type: expected "INT4" or "INT8", got "INT16": activations are INT4 or INT8 bes',
    ),
    (
        arq("dst_type: INT4") + for_type("Linear", ulq("dst_type: INT4")),
        f"{T}.retrain_data_quant_config.ulq_quantize.dst_type: expected",
    ),
    (
        arq("dst_type: INT4") + for_layer("fc", ulq("dst_type: INT4")),
        f"{L}.retrain_data_quant_config.ulq_quantize.dst_type: expected",
    ),
    # capabilities
    *(
        (
            text,
            f"{place}.retrain_weight_quant_config.arq_retrain.channel_wise: expected false, got "
            f"true: {why}",
        )
        for section in [arq("channel_wise: true")]
        for text, place, why in [
            (for_type("Linear", section), T, "one scale per channel is for"),
            (for_type("AvgPool2d", section), T, "AvgPool2d has no weights"),
            (for_layer("fc", section), L, "one scale per channel is for"),
            (for_layer("pool", section), L, "AvgPool2d has no weights"),
        ]
    ),
    *(
        (
            text,
            f"{place}.retrain_data_quant_config.ulq_quantize.dst_type: expected "
            f'"INT8", got "INT16": {why}',
        )
        for section in [ulq("dst_type: INT16")]
        for text, place, why in [
            (for_type("Conv3d", section), T, "16-bit activations are for"),
            (for_type("AvgPool2d", section), T, "16-bit activations are for"),
            (for_layer("conv3d", section), L, "16-bit activations are for"),
            (for_layer("fc_plain", section), L, "a Linear has 16-bit activations only with a bias"),
        ]
    ),
    # nothing is left
    (
        "".join(f'skip_layer_types: "{kind}" ' for kind in TYPES.split(", ")),
        "No layer retrain enabled",
    ),
    ("".join(f'quant_skip_layers: "{name}" ' for name in NAMES), "No layer retrain enabled"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: value)
def test_refused(load, text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(text)
    without_lines = re.sub(
        r"^retrain\.cfg:\d+:", "retrain.cfg:", str(caught.value), flags=re.MULTILINE
    )
    assert message in without_lines
    assert without_lines.startswith("retrain.cfg: ")


def test_a_model_without_a_quantizable_layer_is_refused(load):
    with pytest.raises(
        ValueError,
        match="retrain.cfg: No supported layers: the model has no layer that can be quantiz",
    ):
        load("", ModelFacts({}, {"relu": "ReLU"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "batch_num: 1\nbatch_mum: 2",
            'retrain.cfg:2: Message type "AMCTPytorchProto.AMCTRetrainConfig" has no field named '
            '"batch_mum"; did you mean "batch_num"?',
        ),
        (ulq("fixed_mn: true"), '; did you mean "fixed_min"?'),
        (
            ulq("clip_max_min { clip_max: 1 }"),
            "retrain.cfg:1: retrain_data_quant_config.ulq_quantize.clip_max_min.clip_min: required",
        ),
        ("override_layer_configs {}", "override_layer_configs[0].layer_name: required, found none"),
    ],
    ids=["unknown field", "unknown field inside", "one clip", "no layer_name"],
)
def test_text_that_does_not_parse_is_refused(load, text, message):
    with pytest.raises(ParseError) as caught:
        load(text)
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.cfg"):
        load_simplified_retrain(str(tmp_path / "none.cfg"), FACTS)
