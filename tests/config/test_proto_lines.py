"""The line of a mistake in a simplified configuration as protobuf text."""

import pytest
from google.protobuf import text_format

from amct_pytorch.config.messages import message_class
from amct_pytorch.config.proto_lines import lines_of
from amct_pytorch.config.simplified import load_simplified
from amct_pytorch.graph import Layer, ModelFacts

CONFIG = message_class("calibration_config_pytorch", "AMCTPytorchProto.AMCTConfig")
FACTS = ModelFacts({"conv": Layer("conv", "Conv2d", None)}, {"conv": "Conv2d"})

TEXT = """\
# a comment with "quotes" and { braces }
batch_num: 2; activation_offset: true,
skip_layers: "a" skip_layers: 'b # "' # a comment
skip_layers: [
  "c", "d"
  "e in parts"
]
skip_layer_types: []

common_config <
  arq_quantize {
    channel_wise
      : true }
  hfmg_quantize: { num_of_bins: 1024 }
>
override_layer_configs {
  layer_name: "conv" calibration_config {} }
override_layer_configs: [{ layer_name: "x"
                           calibration_config { ifmr_quantize { search_step: 1e-2 } } },
                         { layer_name: "y" calibration_config {} }]
do_fusion: false
"""


def test_every_field_has_its_line():
    text_format.Parse(TEXT, CONFIG())  # it is such a text
    first, second, third = (("override_layer_configs", i) for i in range(3))
    step = ("calibration_config", "ifmr_quantize", "search_step")
    assert lines_of(TEXT, CONFIG.DESCRIPTOR) == {
        ("batch_num",): 2,
        ("activation_offset",): 2,
        ("skip_layers", 0): 3,
        ("skip_layers", 1): 3,
        ("skip_layers", 2): 5,
        ("skip_layers", 3): 5,
        ("common_config",): 10,
        ("common_config", "arq_quantize"): 11,
        ("common_config", "arq_quantize", "channel_wise"): 12,
        ("common_config", "hfmg_quantize"): 14,
        ("common_config", "hfmg_quantize", "num_of_bins"): 14,
        first: 16,
        (*first, "layer_name"): 17,
        (*first, "calibration_config"): 17,
        second: 18,
        (*second, "layer_name"): 18,
        (*second, "calibration_config"): 19,
        (*second, *step[:2]): 19,
        (*second, *step): 19,
        third: 20,
        (*third, "layer_name"): 20,
        (*third, "calibration_config"): 20,
        ("do_fusion",): 21,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'batch_num: 1\nskip_layers: [\n"conf"]',
            'q.cfg:3: skip_layers[0]: expected the name of a layer of the model, got "conf"; ',
        ),
        (
            "common_config {\n\n arq_quantize { quant_bits: 5 } }",
            "q.cfg:3: common_config.arq_quantize.quant_bits: expected 4, 6, 7 or 8, got 5",
        ),
        (
            'override_layer_types {\n layer_type: "Conv2d"\n}',
            "q.cfg:1: override_layer_types[0].calibration_config: required, found none",
        ),
        (
            'override_layer_configs { layer_name: "conv" calibration_config {} }\n'
            'override_layer_configs {\n layer_name: "conv"\n calibration_config {} }',
            'q.cfg:3: override_layer_configs[1].layer_name: expected each name once, got "conv"',
        ),
        ("batch_num: 1\n\nbatch_num: 1", "q.cfg:3: "),
        ("batch_num: 1\nbatch_nun: 1", 'q.cfg:2: .*; did you mean "batch_num"?'),
    ],
    ids=["unknown layer", "value", "required", "repeated", "twice", "unknown field"],
)
def test_a_mistake_is_told_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.cfg").write_text(text)
    pattern = message.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises((ValueError, text_format.ParseError), match=f"^{pattern}"):
        load_simplified("q.cfg", FACTS)
