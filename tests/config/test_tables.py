"""The documented tables of the quantization config, row by row.

Each row says what a key takes, what it refuses and with which error, and what it is when it is left
out; the table of layer types says what each may be asked for. How messages read is tested beside.
"""

import json
from dataclasses import dataclass, replace

import pytest

from amct_pytorch.capability import KINDS
from amct_pytorch.config import QuantConfig
from amct_pytorch.config.simplified import load_simplified
from amct_pytorch.graph import Layer, ModelFacts

SOURCE = "config.json"


def facts_of(*layers):
    return ModelFacts({x.name: x for x in layers}, {x.name: x.kind for x in layers})


def able(kind):
    """A layer, named like its type, that can do all that the type can."""
    return Layer(kind, kind, None, has_bias=True, in_channels=4, out_channels=4)


# --- keys --------------------------------------------------------------------------------------

ACT, WTS = "activation_quant_params", "weight_quant_params"
IFMR, HFMG = {"act_algo": "ifmr"}, {"act_algo": "hfmg"}
ARQ, ADA = {"wts_algo": "arq_quantize"}, {"wts_algo": "ada_quantize"}
NONE = object()  # no default: the key is left out


@dataclass(frozen=True)
class Row:
    """One key: where it is and what stands beside it, its default, what it takes and refuses."""

    path: tuple[str, ...]
    beside: dict
    default: object
    takes: list
    refuses: dict[type, list]


NOT_A_BOOL, NOT_AN_INT, NOT_A_NUMBER = [0, 1, "true", None], [8.0, "8", True, None], ["0.9", None]
FRACTION = {ValueError: [0, 0.0, 1, 1.0, -0.5], TypeError: [*NOT_A_NUMBER, True]}
PERCENTILE = {ValueError: [0.5, 0.4, 1.000001, 0], TypeError: [*NOT_A_NUMBER, True]}
BITS_OF_WEIGHTS = {ValueError: [0, 3, 5, 9, 16], TypeError: NOT_AN_INT}

GLOBALS = [
    Row(("version",), {}, 1, [1], {ValueError: [0, 2], TypeError: ["1", 1.0, True, None]}),
    Row(("batch_num",), {}, 1, [1, 2], {ValueError: [0, -1], TypeError: [1.0, "1", True, None]}),
    Row(("activation_offset",), {}, True, [True, False], {TypeError: NOT_A_BOOL}),
    Row(("do_fusion",), {}, True, [True, False], {TypeError: NOT_A_BOOL}),
    Row(
        ("fakequant_precision_mode",),
        {},
        NONE,
        ["DEFAULT", "FORCE_FP16_QUANT"],
        {ValueError: ["", "default"], TypeError: [1, None]},
    ),
    Row(
        ("skip_fusion_layers",),
        {},
        [],
        [[], ["Conv1d", "Conv2d", "Conv3d"]],
        {
            ValueError: [["Conv2d", "Conv2d"], ["none"], ["Linear"], ["ConvTranspose2d"]],
            TypeError: ["Conv2d", [1], None],
        },
    ),
]
IN_A_LAYER = [
    Row(("quant_enable",), {}, True, [True, False], {TypeError: NOT_A_BOOL}),
    Row(
        ("dmq_balancer_param",),
        {},
        NONE,
        [0.2, 0.5, 0.8],
        {ValueError: [0.19, 0.81, 0.0], TypeError: [1, 0, "0.5", True, None]},
    ),
    *(
        Row(
            (ACT, "num_bits"),
            algorithm,
            8,
            [4, 8, 16],
            {ValueError: [0, 6, 7, 32], TypeError: NOT_AN_INT},
        )
        for algorithm in (IFMR, HFMG)
    ),
    Row((ACT, "max_percentile"), IFMR, 0.999999, [0.500001, 1.0, 1], PERCENTILE),
    Row((ACT, "min_percentile"), IFMR, 0.999999, [0.500001, 1.0, 1], PERCENTILE),
    Row(
        (ACT, "search_range"),
        IFMR,
        [0.7, 1.3],
        [[0.1, 2.0], [1, 2]],
        {
            ValueError: [[], [1.0], [0.7, 1, 1.3], [0, 1], [-1, 1], [1, 1], [1.3, 0.7]],
            TypeError: [0.7, {}, None, ["0.7", 1.3]],
        },
    ),
    Row(
        (ACT, "search_step"),
        IFMR,
        0.01,
        [0.001, 0.6],
        {ValueError: [0, -0.1, 0.60001], TypeError: [*NOT_A_NUMBER, True]},
    ),
    Row((ACT, "act_algo"), {}, "ifmr", ["ifmr", "hfmg"], {ValueError: ["kl"], TypeError: [1]}),
    Row(
        (ACT, "num_of_bins"),
        HFMG,
        4096,
        [1024, 2048, 4096, 8192],
        {ValueError: [0, 512, 1000, 16384], TypeError: [1024.0, "1024", True, None]},
    ),
    *(
        Row((ACT, "asymmetric"), algorithm, True, [True, False], {TypeError: NOT_A_BOOL})
        for algorithm in (IFMR, HFMG)
    ),
    *(
        Row((WTS, "num_bits"), algorithm, 8, [4, 6, 7, 8], BITS_OF_WEIGHTS)
        for algorithm in (ARQ, ADA)
    ),
    *(
        Row((WTS, "channel_wise"), algorithm, True, [True, False], {TypeError: NOT_A_BOOL})
        for algorithm in (ARQ, ADA)
    ),
    Row(
        (WTS, "wts_algo"),
        {},
        "arq_quantize",
        ["arq_quantize", "ada_quantize"],
        {ValueError: ["nuq", "arq"], TypeError: [1, None]},
    ),
    Row((WTS, "reg_param"), ADA, 0.01, [0.001, 0.999], FRACTION),
    Row((WTS, "warm_start"), ADA, 0.2, [0.001, 0.999], FRACTION),
    Row(
        (WTS, "num_iteration"),
        ADA,
        10000,
        [0, 1],
        {ValueError: [-1], TypeError: [1.0, "1", True, None]},
    ),
    Row(
        (WTS, "beta_range"),
        ADA,
        [20.0, 2.0],
        [[3, 1], [2.5, 0.5]],
        {
            ValueError: [[], [2], [3, 2, 1], [2, 20], [2, 2], [2, 0], [2, -1]],
            TypeError: [20, None, ["20", 2]],
        },
    ),
]


def entry(row, value=NONE):
    """The object of a layer that says `value` for the key of `row`, or nothing."""
    own = {} if value is NONE else {row.path[-1]: value}
    inner = {**row.beside, **own}
    inside = {row.path[0]: inner} if len(row.path) > 1 else inner
    return {"quant_enable": True, **inside}


def document(row, value=NONE):
    if row in GLOBALS:
        return {**({} if value is NONE else {row.path[0]: value}), "Conv2d": {"quant_enable": True}}
    return {"Conv2d": entry(row, value), "Conv1d": {"quant_enable": True}}


def written(row, config):
    """The value of the key in the file that `config` is written to."""
    tree = json.loads(config.dumps())
    for key in row.path if row in GLOBALS else ("Conv2d", *row.path):
        tree = tree.get(key, NONE) if isinstance(tree, dict) else NONE
    return tree


ROWS = GLOBALS + IN_A_LAYER
FACTS = facts_of(*map(able, KINDS))


def name_of(row):
    return ".".join(row.path) + "".join(f"-{value}" for value in row.beside.values())


def load(row, value=NONE):
    return QuantConfig.from_document(document(row, value), FACTS, SOURCE)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_default(row):
    assert written(row, load(row)) == row.default


@pytest.mark.parametrize(
    ("row", "value"),
    [pytest.param(row, v, id=f"{name_of(row)}={v}") for row in ROWS for v in row.takes],
)
def test_taken(row, value):
    expected = NONE if value == "DEFAULT" else value  # is not written
    assert written(row, load(row, value)) == expected


@pytest.mark.parametrize(
    ("row", "value", "error"),
    [
        pytest.param(row, value, error, id=f"{name_of(row)}={json.dumps(value)}")
        for row in ROWS
        for error, values in row.refuses.items()
        for value in values
    ],
)
def test_refused(row, value, error):
    with pytest.raises(error) as caught:
        load(row, value)
    assert type(caught.value) is error
    place = ".".join(row.path if row in GLOBALS else ("Conv2d", *row.path))
    assert str(caught.value).startswith(f"{SOURCE}: {place}")


def test_every_key_of_the_models_has_a_row():
    config = QuantConfig.generate(FACTS)
    assert {row.path[0] for row in GLOBALS} == set(QuantConfig.model_fields) - {"layers"}
    for algorithms in ({**IFMR, **ARQ}, {**HFMG, **ADA}):
        act = {k: v for k, v in algorithms.items() if k == "act_algo"}
        wts = {k: v for k, v in algorithms.items() if k == "wts_algo"}
        config = QuantConfig.from_document({"Conv2d": {ACT: act, WTS: wts}}, FACTS, SOURCE)
        for part in (ACT, WTS):
            keys = {(part, key) for key in getattr(config.layers["Conv2d"], part).model_dump()}
            assert keys <= {row.path for row in IN_A_LAYER}


# --- types of layers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Type:
    """What a layer of a type may be asked for."""

    channel_wise: bool
    int16: bool = True
    asymmetric: bool = True
    dmq: bool = True
    ada: bool = False
    six_seven: bool = False
    four: bool = True  # a layer with groups=1 and an even number of inputs
    fusion: bool = False


TYPES = {
    "Conv1d": Type(channel_wise=True, fusion=True),
    "Conv2d": Type(channel_wise=True, ada=True, six_seven=True, fusion=True),
    "Conv3d": Type(channel_wise=True, int16=False, asymmetric=False, fusion=True),
    "ConvTranspose1d": Type(channel_wise=True),
    "ConvTranspose2d": Type(channel_wise=True, ada=True),
    "Linear": Type(channel_wise=False, ada=True),
    "AvgPool2d": Type(channel_wise=False, int16=False, dmq=False),
    "LSTM": Type(channel_wise=True, dmq=False),
    "GRU": Type(channel_wise=True, dmq=False),
}
# What a type may be asked for -> the layer's object, protobuf text, and whether a layer has it.
ASKED = {
    "channel_wise": (
        {WTS: {"channel_wise": True}},
        "arq_quantize { channel_wise: true }",
        lambda layer: layer.weight_quant_params.channel_wise,
    ),
    "int16": (
        {ACT: {"num_bits": 16}},
        "ifmr_quantize { dst_type: INT16 }",
        lambda layer: layer.activation_quant_params.num_bits == 16,
    ),
    "asymmetric": (
        {ACT: {"asymmetric": True}},
        "ifmr_quantize { asymmetric: true }",
        lambda layer: layer.activation_quant_params.asymmetric,
    ),
    "dmq": (
        {"dmq_balancer_param": 0.5},
        "dmq_balancer { }",
        lambda layer: layer.dmq_balancer_param == 0.5,
    ),
    "ada": (
        {WTS: ADA},
        "ada_quantize { }",
        lambda layer: layer.weight_quant_params.wts_algo == "ada_quantize",
    ),
    "six_seven": (
        {WTS: {"num_bits": 7}},
        "arq_quantize { quant_bits: 7 }",
        lambda layer: layer.weight_quant_params.num_bits == 7,
    ),
    "four": (
        {WTS: {"num_bits": 4}},
        "arq_quantize { quant_bits: 4 }",
        lambda layer: layer.weight_quant_params.num_bits == 4,
    ),
}
CASES = [pytest.param(kind, what, id=f"{kind}-{what}") for kind in KINDS for what in ASKED]


def override(kind, section, by):
    field, key = {
        "type": ("override_layer_types", "layer_type"),
        "layer": ("override_layer_configs", "layer_name"),
    }[by]
    return f'{field} {{ {key}: "{kind}" calibration_config {{ {section} }} }}'


@pytest.fixture
def simplified(tmp_path):
    """The configuration that protobuf text stands for."""

    def simplified(text, facts=FACTS):
        path = tmp_path / "quant.cfg"
        path.write_text(text)
        return load_simplified(str(path), facts)

    return simplified


def test_every_type_has_a_row():
    assert set(KINDS) <= TYPES.keys()


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_a_layer_is_asked_for(kind, what):
    asked, _, has = ASKED[what]
    document = {kind: {"quant_enable": True, **asked}}
    if getattr(TYPES[kind], what):
        assert has(QuantConfig.from_document(document, FACTS, SOURCE).layers[kind])
    else:
        with pytest.raises(ValueError, match=f"{SOURCE}: {kind}.*{kind}"):
            QuantConfig.from_document(document, FACTS, SOURCE)


@pytest.mark.parametrize(("kind", "what"), CASES)
@pytest.mark.parametrize("by", ["type", "layer"])
def test_an_override_asks_for(simplified, kind, what, by):
    _, section, has = ASKED[what]
    if getattr(TYPES[kind], what):
        assert has(simplified(override(kind, section, by)).layers[kind])
    else:
        with pytest.raises(ValueError, match=r"override_layer_\w+\[0\].calibration_config"):
            simplified(override(kind, section, by))


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_the_common_section_asks_for(simplified, caplog, kind, what):
    _, section, has = ASKED[what]
    layer = simplified(f"common_config {{ {section} }}").layers[kind]
    assert has(layer) == getattr(TYPES[kind], what)
    assert has(layer) != (f"left out for {kind}:" in caplog.text)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_a_type(kind):
    layer = QuantConfig.generate(FACTS).layers[kind]
    assert layer.weight_quant_params.channel_wise == TYPES[kind].channel_wise
    assert layer.activation_quant_params.asymmetric == TYPES[kind].asymmetric


@pytest.mark.parametrize("kind", KINDS)
def test_fusion_of_a_type(kind):
    document = {"skip_fusion_layers": [kind], kind: {"quant_enable": True}}
    if TYPES[kind].fusion:
        assert QuantConfig.from_document(document, FACTS, SOURCE).skip_fusion_layers == (kind,)
    else:
        with pytest.raises(ValueError, match="expected a layer of type Conv1d, Conv2d, Conv3d"):
            QuantConfig.from_document(document, FACTS, SOURCE)


@pytest.mark.parametrize("bits", [6, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_with_adaround_have_the_limits_of_arq(simplified, kind, bits):
    weight = simplified(f"common_config {{ ada_quantize {{ quant_bits: {bits} }} }}").layers[kind]
    assert weight.weight_quant_params.num_bits == (bits if TYPES[kind].six_seven else 8)


# A layer that cannot have what its type can, and what.
SHAPES = {
    "Linear without a bias": (replace(able("Linear"), has_bias=False), "int16"),
    "Conv1d with groups": (replace(able("Conv1d"), groups=2), "four"),
    "Conv2d with groups": (replace(able("Conv2d"), groups=2), "four"),
    "Conv3d with odd inputs": (replace(able("Conv3d"), in_channels=3), "four"),
    "ConvTranspose1d with groups": (replace(able("ConvTranspose1d"), groups=2), "four"),
    "ConvTranspose2d with odd inputs": (replace(able("ConvTranspose2d"), in_channels=3), "four"),
    "Linear with odd inputs": (replace(able("Linear"), in_channels=3), "four"),
    "LSTM with odd inputs": (replace(able("LSTM"), in_channels=3), "four"),
    "LSTM with an odd state": (replace(able("LSTM"), out_channels=3), "four"),
    "GRU with an odd state": (replace(able("GRU"), out_channels=3), "four"),
}
OFFERED = {name: case for name, case in SHAPES.items() if case[0].kind in KINDS}


@pytest.mark.parametrize(("layer", "what"), OFFERED.values(), ids=OFFERED)
def test_the_shape_of_a_layer_limits_it(simplified, caplog, layer, what):
    asked, section, has = ASKED[what]
    facts = facts_of(layer)
    with pytest.raises(ValueError, match=f"{SOURCE}: {layer.name}"):
        QuantConfig.from_document({layer.name: {"quant_enable": True, **asked}}, facts, SOURCE)
    for text in (f"common_config {{ {section} }}", override(layer.kind, section, "type")):
        caplog.clear()
        assert not has(simplified(text, facts).layers[layer.name])
        assert f"left out for {layer.name}" in caplog.text
