"""save_model on records that do not fit: every row of the format's table of checks.

A record of a real calibration is changed by hand, as a user would, in one place.
"""

import re

import pytest
import torch
from ptq_flow import ptq
from torch import nn

import amct_pytorch as amct
from amct_pytorch.records import KVCacheRecord, Records

EVERY_LAYER = ("conv", "up", "pool", "fc")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose2d(3, 4, 3, groups=1)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x):
        return self.fc(self.pool(self.relu(self.up(self.conv(x)))).flatten(1))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    torch.manual_seed(0)
    return ptq(tmp_path_factory.mktemp("flow"), Model().eval(), [torch.randn(1, 2, 8, 8)])


@pytest.fixture
def save(flow, tmp_path):
    """Saves the model with the record whose text it is given."""

    def save(text):
        record = tmp_path / "record.txt"
        record.write_text(text)
        amct.save_model(str(flow.folder / "modified.onnx"), str(record), str(tmp_path / "out"))

    return save


@pytest.fixture
def text(flow):
    return (flow.folder / "record.txt").read_text()


def edited(text, layer, pattern, replacement):
    """`text` with every match of `pattern` in the value of `layer` replaced."""
    start = text.index(f'key: "{layer}"')
    end = text.index("\n}\n", start)
    value, count = re.subn(pattern, replacement, text[start:end], flags=re.MULTILINE)
    assert count
    return text[:start] + value + text[end:]


def without(field):
    return rf"^    {field}: .*\n", ""


def to(field, value):
    return rf"^    {field}: .*", f"    {field}: {value}"


def and_then(line):
    return r"  value \{\n", f"  value {{\n    {line}\n"


def test_the_record_as_it_is_is_taken(save, text):
    assert list(Records.parse(text)) == list(EVERY_LAYER)
    save(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("record { nonsense }", "record.txt:1:"),
        ("", "expected at least one record, found none"),
        ("record { value {} }", "record 1: expected a key"),
        ('record { key: "conv" }', 'layer "conv": expected a value'),
        (
            Records({}, kv_cache={"conv": KVCacheRecord((1.0,), (0,))}).dumps(),
            "expected the factors of quantized layers, found only those of KV caches (of conv)",
        ),
    ],
    ids=["does not parse", "no record", "no key", "no value", "KV-cache factors only"],
)
def test_a_file_as_a_whole_is_refused(save, content, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        save(content)


def test_a_model_is_not_simulated_with_kv_cache_factors_only(flow, tmp_path):
    path = tmp_path / "record.txt"
    Records({}, kv_cache={"conv": KVCacheRecord((1.0,), (0,))}).save(str(path))
    with pytest.raises(RuntimeError, match="found only those of KV caches"):
        amct.simulate_model(flow.calibrated, str(path))


@pytest.mark.parametrize("key", ["con", "relu", "no.such.layer"])
def test_a_key_that_is_no_quantized_layer_is_refused(save, text, key):
    with pytest.raises(RuntimeError, match=f'layer "{key}": key: the model has no quantizable'):
        save(text.replace('key: "conv"', f'key: "{key}"'))


def test_an_entry_without_factors_leaves_its_layer_float(save, text):
    save(edited(text, "conv", r"^    (scale|offset)_.*\n", ""))


def test_kv_cache_factors_beside_others_change_nothing(save, text, tmp_path):
    save(text)
    before = (tmp_path / "out_deploy_model.onnx").read_bytes()
    save(Records.parse(text).with_kv_cache({"fc": KVCacheRecord((1.0,), (0,))}).dumps())
    assert (tmp_path / "out_deploy_model.onnx").read_bytes() == before


ROWS = [
    *(
        (f"{layer} without {field}", layer, without(field), RuntimeError, f"{field}: expected in")
        for layer, field in (
            ("conv", "scale_d"),
            ("conv", "offset_d"),
            ("conv", "scale_w"),
            ("conv", "offset_w"),
            ("pool", "scale_w"),
            ("pool", "offset_w"),
        )
    ),
    ("shift on a pool", "pool", and_then("shift_bit: 1"), RuntimeError, "shift_bit: expected none"),
    *(
        (f"{field} {value}", layer, change, RuntimeError, f"{field}: expected")
        for field, value, layer, change in (
            ("dst_type", "INT16", "conv", and_then('dst_type: "INT16"')),
            ("dst_type", "INT4 of a pool", "pool", and_then('dst_type: "INT4"')),
            ("act_type", "INT32", "conv", to("act_type", '"INT32"')),
            ("wts_type", "INT16", "conv", to("wts_type", '"INT16"')),
            ("fakequant_precision_mode", "X", "conv", and_then('fakequant_precision_mode: "X"')),
        )
    ),
    ("more offsets", "fc", and_then("offset_w: 0"), RuntimeError, "as many as scale_w (1), found"),
    *(
        (
            f"{layer} with {count} scales",
            layer,
            (r"^    (scale_w|offset_w): .*\n(    \1: .*\n)*", rf"{many}"),
            RuntimeError,
            f"for this {kind}, found {count}",
        )
        for layer, kind, count in (
            ("conv", "Conv", 2),
            ("up", "ConvTranspose", 3),
            ("pool", "AveragePool", 2),
            ("fc", "Gemm", 5),
        )
        for many in [r"    \1: 0\n" * count]
    ),
    *(
        (
            f"offset {offset} of {bits} bits",
            "conv",
            (
                r'^    offset_d: .*\n((?:.*\n)*)    act_type: .*\n',
                rf'    offset_d: {offset}\n\1    act_type: "INT{bits}"\n',
            ),
            ValueError,
            f"offset_d: expected {-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1} ({bits} bits)",
        )
        for bits in (4, 8, 16)
        for offset in (-(2 ** (bits - 1)) - 1, 2 ** (bits - 1))
    ),
    ("INT4 as dst_type", "conv", (r"^    offset_d: .*", '    offset_d: 8\n    dst_type: "INT4"'),
     ValueError, "offset_d: expected -8 to 7 (4 bits), got 8"),
    ("an offset of weights", "fc", to("offset_w", 1), ValueError, "offset_w: expected 0, got 1"),
    *(
        (f"{field} {value}", "fc", to(field, value), ValueError, f"{field}: expected a finite")
        for field in ("scale_d", "scale_w")
        for value in ("0", "-0.0", "-1", "nan", "inf", "1e39", "1" + "0" * 400)
    ),
    (
        "balance of a pool",
        "pool",
        and_then("tensor_balance_factor: 1"),
        RuntimeError,
        "tensor_balance_factor: expected none for an AveragePool",
    ),
    (
        "balance of another length",
        "conv",
        and_then("tensor_balance_factor: [1, 1, 1]"),
        ValueError,
        "tensor_balance_factor: expected one per input channel (2), found 3",
    ),
    *(
        (
            f"balance {value}",
            "conv",
            and_then(f"tensor_balance_factor: [1, {value}]"),
            ValueError,
            "tensor_balance_factor: expected 1.19209e-07 to 8.38861e+06, got",
        )
        for value in ("1e-8", "1e7", "0", "-1", "nan", "inf")
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "change", "error", "message"),
    [row[1:] for row in ROWS],
    ids=[row[0][:40] for row in ROWS],
)
def test_a_layer_is_refused(save, text, tmp_path, layer, change, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        save(edited(text, layer, *change))
    assert f'layer "{layer}": ' in str(caught.value)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("field", ["act_type", "wts_type"])
def test_a_type_that_is_absent_is_taken_as_8_bits(save, text, field, caplog):
    save(edited(text, "conv", *without(field)))
    assert f'layer "conv": {field}: not in the record; taken as INT8' in caplog.text
