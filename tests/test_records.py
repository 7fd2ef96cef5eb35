"""The record file: its text, what is read, what a record must fulfil to be used."""

import math
import struct
import time

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from amct_pytorch.config.messages import message_class
from amct_pytorch.float32 import shortest
from amct_pytorch.records import KVCacheRecord, LayerRecord, Records, RecordTarget
from amct_pytorch.records.plain_text import read_plain

EVERY_FIELD = LayerRecord(
    scale_d=0.1,
    offset_d=-8,
    scale_w=(0.5, 1e-5),
    offset_w=(0, 0),
    shift_bit=(3,),
    tensor_balance_factor=(1.0, 0.3),
    skip_fusion=False,
    dst_type="INT8",
    act_type="INT16",
    wts_type="INT4",
    fakequant_precision_mode="FORCE_FP16_QUANT",
    scale_h=0.25,
    offset_h=1,
    scale_r=(2.0,),
    offset_r=(0,),
)
EVERY_FIELD_TEXT = """\
# calibration: "fc" has seen 1 of 2 batches
record {
  key: "conv"
  value {
    scale_d: 0.1
    offset_d: -8
    scale_w: 0.5
    scale_w: 1e-05
    offset_w: 0
    offset_w: 0
    shift_bit: 3
    tensor_balance_factor: 1.0
    tensor_balance_factor: 0.3
    skip_fusion: false
    dst_type: "INT8"
    act_type: "INT16"
    wts_type: "INT4"
    fakequant_precision_mode: "FORCE_FP16_QUANT"
    scale_h: 0.25
    offset_h: 1
    scale_r: 2.0
    offset_r: 0
  }
}
record {
  key: "fc"
  value {
  }
}
"""
ODD_NAMES = ["a.b", 'quo"te', "back\\slash", "new\nline", "é", "\u2028", "tab\t'", "\x7f", "# a"]


def reference_text(records: Records) -> str:
    """What protobuf itself prints."""
    message = message_class("scale_offset_record_pytorch", "AMCTPytorchProto.ScaleOffsetRecord")()
    for layer, record in records.items():
        entry = message.record.add()
        entry.key = layer
        entry.value.SetInParent()
        for name, value in vars(record).items():
            if isinstance(value, tuple):
                getattr(entry.value, name).extend(value)
            elif value is not None:
                setattr(entry.value, name, value)
    return text_format.MessageToString(message, as_utf8=True)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a record file given as text; messages begin with `record.txt`."""
    monkeypatch.chdir(tmp_path)

    def read(text: str) -> Records:
        (tmp_path / "record.txt").write_text(text, newline="")
        return Records.load("record.txt")

    return read


# --- text --------------------------------------------------------------------------------------


def test_every_field_is_written_in_the_order_of_its_number():
    records = Records({"conv": EVERY_FIELD, "fc": LayerRecord()}, {"fc": (1, 2)})
    assert records.dumps() == EVERY_FIELD_TEXT


def test_every_field_is_read_back(read):
    records = Records({"conv": EVERY_FIELD, "fc": LayerRecord()}, {"fc": (1, 2)})
    assert read(EVERY_FIELD_TEXT) == records


def test_a_file_that_an_editor_of_windows_has_saved(read):
    records = Records({"conv": EVERY_FIELD, "fc": LayerRecord()}, {"fc": (1, 2)})
    assert read("\ufeff" + EVERY_FIELD_TEXT.replace("\n", "\r\n")) == records


def test_saving_and_loading_gives_an_equal_record(tmp_path):
    records = Records({"conv": LayerRecord(1 / 3, 5, (0.1, 0.2), (0, 0))}, {"conv": (0, 3)})
    records.save(str(tmp_path / "record.txt"))
    assert Records.load(str(tmp_path / "record.txt")) == records


float32 = st.floats(width=32)
layer_records = st.builds(
    LayerRecord,
    scale_d=st.none() | float32,
    offset_d=st.none() | st.integers(-(2**31), 2**31 - 1),
    scale_w=st.lists(float32, max_size=4).map(tuple),
    offset_w=st.lists(st.integers(-128, 127), max_size=4).map(tuple),
    shift_bit=st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple),
    tensor_balance_factor=st.lists(float32, max_size=4).map(tuple),
    skip_fusion=st.none() | st.booleans(),
    act_type=st.none() | st.text(max_size=4),
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), layer_records, max_size=3))
def test_the_text_is_that_of_protobuf(layers):
    records = Records(layers)
    assert records.dumps() == reference_text(records)


def test_floats_are_printed_as_protobuf_prints_them():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    records = Records({"conv": LayerRecord(scale_w=tuple(bits.view(np.float32).tolist()))})
    assert records.dumps() == reference_text(records)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (1.0, "1.0"),
        (1 / 3, "0.33333334"),
        (1e-5, "1e-05"),
        (16777216.0, "16777216.0"),
        (3.4028234663852886e38, "3.4028235e+38"),
        (2.0**-149, "1.4013e-45"),
        (-0.0, "-0.0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_shortest_decimals(value, text):
    assert str(shortest([value])[0]) == text


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_any_module_name_survives(tmp_path, name):
    records = Records({name: LayerRecord(offset_w=(0,))}, {name: (1, 2)})
    records.save(str(tmp_path / "record.txt"))
    assert Records.load(str(tmp_path / "record.txt")) == records


def test_decimals_next_to_ties_and_powers_of_ten():
    powers = np.array([10.0**exponent for exponent in range(-12, 10)], np.float32)
    ties = np.array([1234565 / 2**k for k in range(1, 30)], np.float32)
    values = np.concatenate([powers, ties])
    values = np.concatenate([np.nextafter(values, np.float32(end)) for end in (0, np.inf)])
    records = Records({"conv": LayerRecord(scale_w=tuple(values.tolist()))})
    assert records.dumps() == reference_text(records)


def test_writing_many_channels_takes_well_under_a_second():
    scales = np.random.default_rng(0).random((200, 512)).tolist()
    records = Records(
        {f"layer{i}": LayerRecord(0.1, 3, tuple(s), (0,) * 512) for i, s in enumerate(scales)}
    )
    start = time.process_time()
    records.dumps()
    assert time.process_time() - start < 1.0  # 0.17 s on one core of a laptop


def test_factors_are_rounded_to_float32():
    third = struct.unpack("f", struct.pack("f", 1 / 3))[0]
    record = LayerRecord(scale_d=1 / 3, scale_w=(1 / 3,))
    assert (record.scale_d, record.scale_w) == (third, (third,))


# --- reading -----------------------------------------------------------------------------------


def test_nine_digits_any_order_and_other_spellings_are_read(read):
    records = read(
        "# a comment\n"
        "record < value: { offset_w: [0, 0], scale_w: 0.100000001 scale_w: 1 scale_d: 2e-1 }\n"
        "  key: 'co' 'nv' >\r\n"
    )
    assert records == Records({"conv": LayerRecord(0.2, None, (0.1, 1.0), (0, 0))})


def test_records_are_a_mapping_in_file_order(read):
    records = read('record { key: "b" value { } }\nrecord { key: "a" value { scale_d: 1 } }\n')
    assert list(records) == ["b", "a"]
    assert records["a"].scale_d == 1.0
    assert len(records) == 2


def test_progress_is_read_from_the_top(read):
    text = (
        '# by hand\n\n# calibration: "\\q" has seen 0 of 2 batches\n'
        '# calibration: "a" has seen 0 of 2 batches\r\nrecord { key: "a" value {} }'
    )
    assert read(text).progress == {"a": (0, 2)}


def test_progress_of_thousands_of_digits_is_a_comment_by_hand(read):
    text = (
        f'# calibration: "a" has seen 1 of {"9" * 5000} batches\nrecord {{ key: "a" value {{ }} }}'
    )
    assert read(text).progress == {}


def test_progress_below_a_record_is_a_comment_like_others(read):
    text = 'record { key: "a" value {} }\n# calibration: "a" has seen 0 of 2 batches\n'
    assert read(text).progress == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'record {\n  key: "a"\n  value {\n    scale: 1\n  }\n}\n',
            'record.txt:4: layer "a": Message type "AMCTPytorchProto.SingleLayerRecord" has',
        ),
        ('record {\n  key: "a"\n  value {\n    scale_d: x\n  }\n}', 'record.txt:4: layer "a":'),
        ('record {\n  key: "a"\n  value {\n    scale_d: 0.', 'record.txt:4: layer "a":'),
        ('record {\n  key: "a"\n  value {\n    scale_w: 0.5\n', 'layer "a": Expected "}"'),
        ('record {\n  key: "a"\n', 'layer "a": Expected "}"'),
        ('record {\n  key: "a"\n  key: "b"\n}', "record.txt:3:"),
        (
            'record { key: "a" value { } } record { value { scale_d: x }\n key: "b" }',
            'record.txt:1: layer "b":',
        ),
        ("garbage", "record.txt:1:"),
        ("", "record.txt: expected at least one record, found none; calibrate the model"),
        ("# nothing\n", "record.txt: expected at least one record, found none"),
        (
            '# calibration: "a" has seen 1 of 2 batches\n',
            'found none; calibration is unfinished: "a" has seen 1 of 2 batches',
        ),
        (
            'record { key: "a" value {} }\nrecord {\n  value {\n  }\n}',
            "record.txt:2: record 2: expected a key (the layer's name), found none",
        ),
        (
            'record { key: "a" value {} }\nrecord {\n  key: "b"\n}',
            'record.txt:2: layer "b": expected a value (its factors), found none',
        ),
        (
            'record { key: "kv" kv_cache_value { scale: 1 scale: 2 offset: 0 } }',
            'layer "kv": kv_cache_value.offset: expected as many as scale (2), found 1',
        ),
        (
            'record { key: "a" value {} }\n\nrecord { key: "a" value {} }',
            'record.txt:3: layer "a": expected one record for each layer, found a second',
        ),
    ],
    ids=[
        "unknown field",
        "no number",
        "cut in a number",
        "cut in a value",
        "cut in an entry",
        "two keys in an entry",
        "two records in a line",
        "no record text",
        "empty",
        "only comments",
        "only progress",
        "no key",
        "no value",
        "cut in a kv cache",
        "key twice",
    ],
)
def test_reading_refuses(read, text, message):
    with pytest.raises(RuntimeError) as caught:
        read(text)
    assert str(caught.value).startswith("record.txt:")
    assert message in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "record.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RuntimeError, match=r"record\.txt: expected UTF-8 text"):
        Records.load(str(tmp_path / "record.txt"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        Records.load(str(tmp_path / "none.txt"))


def new_message():
    return message_class("scale_offset_record_pytorch", "AMCTPytorchProto.ScaleOffsetRecord")()


@given(st.dictionaries(st.sampled_from(["conv", "a.b", "é"]), layer_records, max_size=3))
def test_a_written_file_is_read_without_the_parser_of_protobuf(layers):
    finite = {name: record for name, record in layers.items() if "nan" not in str(record).lower()}
    text = Records(finite, kv_cache={"kv": KVCacheRecord((0.5, 1e-7), (0, -3))}).dumps()
    message = new_message()
    odd = any(word in text for word in ("inf", "\\"))
    assert read_plain(text, message) != odd
    if not odd:
        assert message == text_format.Parse(text, new_message())


PLAIN = Records({"conv": EVERY_FIELD}, kv_cache={"conv": KVCacheRecord((0.5,), (7,))}).dumps()


@given(
    st.integers(0, len(PLAIN)),
    st.integers(0, 2),
    st.sampled_from(
        ["", " ", "\n", "0", "-", ".", "e", '"', "\\", "#", "}", "_", "inf", "é", "  }"]
    ),
)
def test_what_is_read_without_the_parser_is_what_the_parser_reads(position, dropped, added):
    text = PLAIN[:position] + added + PLAIN[position + dropped :]
    message = new_message()
    if read_plain(text, message):
        assert message == text_format.Parse(text, new_message())


@pytest.mark.parametrize(
    "lines",
    [
        ("scale_d: 0.5", "scale_d: 0.5"),
        ("offset_d: 010",),
        ("offset_d: 1.5",),
        ("offset_d: 2147483648",),
        ("shift_bit: -1",),
        ("skip_fusion: 1",),
        ("scale_d: true",),
        ("act_type: 8",),
        ('scale_d: "1"',),
        ("dst: 1",),
        ("scale_w: 1 # a comment",),
    ],
    ids=str,
)
def test_the_parser_decides_what_is_odd(lines):
    text = "".join(f"    {line}\n" for line in lines)
    assert not read_plain(f'record {{\n  key: "a"\n  value {{\n{text}  }}\n}}\n', new_message())


# --- bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "bits"),
    [
        ({}, (8, 8)),
        ({"act_type": "INT16"}, (16, 8)),
        ({"act_type": "INT4", "wts_type": "INT7"}, (4, 7)),
        ({"dst_type": "INT4", "act_type": "INT16", "wts_type": "INT6"}, (4, 4)),
    ],
    ids=str,
)
def test_bits(types, bits):
    record = LayerRecord(**types)
    assert (record.act_bits, record.wts_bits) == bits


@pytest.mark.parametrize(
    ("mode", "forced"), [(None, False), ("DEFAULT", False), ("FORCE_FP16_QUANT", True)]
)
def test_fp16_mode(mode, forced):
    assert LayerRecord(fakequant_precision_mode=mode).force_fp16 is forced


# --- validation --------------------------------------------------------------------------------

TARGETS = {
    "conv": RecordTarget("Conv", 3, 2),
    "up": RecordTarget("ConvTranspose", 3, 2),
    "gemm": RecordTarget("Gemm", 3, 2),
    "matmul": RecordTarget("MatMul", 3, 2),
    "pool": RecordTarget("AveragePool", 0, 0),
    "lstm": RecordTarget("LSTM", 8, 3),  # a hidden state of 2
    "gru": RecordTarget("GRU", 6, 3),
}
EPS = 2.0**-23


def record(**changes) -> LayerRecord:
    fields = {
        "scale_d": 0.1,
        "offset_d": 0,
        "scale_w": (0.5,),
        "offset_w": (0,),
        "act_type": "INT8",
        "wts_type": "INT8",
    }
    return LayerRecord(**(fields | changes))


def per_channel(count: int) -> dict:
    return {"scale_w": (0.5,) * count, "offset_w": (0,) * count}


def recurrent(count: int, **changes) -> dict:
    of_hidden = {"scale_h": 0.1, "offset_h": 0, "scale_r": (0.5,) * count, "offset_r": (0,) * count}
    return per_channel(count) | of_hidden | changes


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        ("conv", {}),
        ("lstm", recurrent(4)),
        ("lstm", recurrent(8, act_type="INT16", offset_h=32767)),
        ("gru", recurrent(3, offset_h=-128)),
        ("gru", recurrent(6, dst_type="INT8")),
        ("conv", per_channel(3)),
        ("up", per_channel(3)),
        ("gemm", {}),
        ("matmul", {}),
        ("pool", {"wts_type": None}),
        ("conv", {"offset_d": -128}),
        ("conv", {"offset_d": 127}),
        ("conv", {"offset_d": 32767, "act_type": "INT16"}),
        ("conv", {"offset_d": -8, "act_type": "INT4"}),
        ("conv", {"offset_d": 7, "dst_type": "INT4"}),
        ("conv", {"tensor_balance_factor": (EPS, 1 / EPS)}),
        ("conv", {"fakequant_precision_mode": "FORCE_FP16_QUANT"}),
        ("conv", {"wts_type": "INT6"}),
        ("conv", {**per_channel(3), "shift_bit": (1, 16, 2)}),
        ("up", {**per_channel(3), "shift_bit": (0, 0, 0)}),
        ("gemm", {"shift_bit": (16,)}),
        ("matmul", {"shift_bit": (1,)}),
    ],
    ids=str,
)
def test_validation_accepts(layer, changes, caplog):
    Records({layer: record(**changes)}).validate(TARGETS)
    assert not caplog.messages


def test_a_record_without_factors_is_passed_over():
    Records({"conv": LayerRecord(tensor_balance_factor=(1.0, 1.0))}).validate(TARGETS)


def test_absent_types_are_taken_as_8_bits_with_a_warning(caplog):
    Records({"conv": record(act_type=None, wts_type=None)}).validate(TARGETS)
    assert caplog.messages == [
        'record: layer "conv": act_type: not in the record; taken as INT8',
        'record: layer "conv": wts_type: not in the record; taken as INT8',
    ]


MISSING = "expected in every quantized layer, found none"


@pytest.mark.parametrize(
    ("layer", "changes", "error", "message"),
    [
        ("conv", {"scale_d": None}, RuntimeError, f"scale_d: {MISSING}"),
        ("conv", {"offset_d": None}, RuntimeError, f"offset_d: {MISSING}"),
        ("conv", {"scale_w": ()}, RuntimeError, f"scale_w: {MISSING}"),
        ("conv", {"offset_w": ()}, RuntimeError, f"offset_w: {MISSING}"),
        ("pool", {"scale_w": ()}, RuntimeError, f"scale_w: {MISSING}"),
        ("pool", {"offset_w": ()}, RuntimeError, f"offset_w: {MISSING}"),
        ("pool", {"shift_bit": (1,)}, RuntimeError, "shift_bit: expected none for an AveragePool"),
        ("gemm", {"shift_bit": (1, 1)}, RuntimeError, "expected as many as scale_w (1), found 2"),
        (
            "conv",
            {**per_channel(3), "shift_bit": (1,)},
            RuntimeError,
            "shift_bit: expected as many as scale_w (3), found 1",
        ),
        ("lstm", recurrent(4, scale_h=None), RuntimeError, f"scale_h: {MISSING}"),
        ("lstm", recurrent(4, offset_h=None), RuntimeError, f"offset_h: {MISSING}"),
        ("gru", recurrent(3, scale_r=()), RuntimeError, f"scale_r: {MISSING}"),
        ("gru", recurrent(3, offset_r=()), RuntimeError, f"offset_r: {MISSING}"),
        ("lstm", recurrent(1), RuntimeError, "scale_w: expected 4 or 8 for this LSTM, found 1"),
        ("gru", recurrent(4), RuntimeError, "scale_w: expected 3 or 6 for this GRU, found 4"),
        (
            "gru",
            recurrent(3, scale_r=(0.5,) * 6),
            RuntimeError,
            "scale_r: expected as many as scale_w (3), found 6",
        ),
        (
            "gru",
            recurrent(3, offset_r=(0,)),
            RuntimeError,
            "offset_r: expected as many as scale_w (3), found 1",
        ),
        ("lstm", recurrent(4, act_type="INT4"), RuntimeError, "expected INT8 or INT16, got 'INT4'"),
        ("lstm", recurrent(4, wts_type="INT6"), RuntimeError, "INT4 or INT8, got 'INT6'"),
        ("gru", recurrent(3, dst_type="INT4"), RuntimeError, "expected INT8, got 'INT4'"),
        ("lstm", recurrent(4, shift_bit=(1,) * 4), RuntimeError, "expected none for an LSTM"),
        (
            "gru",
            recurrent(3, tensor_balance_factor=(1.0,) * 3),
            RuntimeError,
            "tensor_balance_factor: expected none for a GRU, found one",
        ),
        (
            "gru",
            recurrent(3, offset_h=128),
            ValueError,
            "offset_h: expected -128 to 127 (8 bits), got 128",
        ),
        ("gru", recurrent(3, offset_r=(0, 0, 1)), ValueError, "offset_r: expected 0, got 1"),
        ("gru", recurrent(3, scale_h=0.0), ValueError, "scale_h: expected a finite number above 0"),
        (
            "lstm",
            recurrent(4, scale_r=(1.0, 1.0, math.nan, 1.0)),
            ValueError,
            "scale_r: expected a finite number above 0, got nan",
        ),
        (
            "gemm",
            {"shift_bit": (17,)},
            ValueError,
            "shift_bit: expected 1 to 16, or 0 for all, got 17",
        ),
        (
            "conv",
            {**per_channel(3), "shift_bit": (1, 0, 2)},
            ValueError,
            "shift_bit: expected 1 to 16, or 0 for all, got 0",
        ),
        ("conv", {"scale_h": 0.1}, RuntimeError, "scale_h: expected none for a Conv, found one"),
        ("conv", {"offset_r": (0,)}, RuntimeError, "offset_r: expected none for a Conv, found"),
        ("conv", {"dst_type": "INT16"}, RuntimeError, "dst_type: expected INT4 or INT8, got 'INT1"),
        ("pool", {"dst_type": "INT4"}, RuntimeError, "dst_type: expected INT8 for an AveragePool"),
        (
            "conv",
            {"act_type": "INT6"},
            RuntimeError,
            "act_type: expected INT4 or INT8 or INT16, got 'INT6'",
        ),
        (
            "conv",
            {"wts_type": "INT16"},
            RuntimeError,
            "wts_type: expected INT4 or INT6 or INT7 or INT8, got 'INT16'",
        ),
        (
            "conv",
            {"fakequant_precision_mode": "FP16"},
            RuntimeError,
            "fakequant_precision_mode: expected DEFAULT or FORCE_FP16_QUANT, got 'FP16'",
        ),
        (
            "conv",
            {"offset_w": (0, 0)},
            RuntimeError,
            "offset_w: expected as many as scale_w (1), found 2",
        ),
        ("conv", per_channel(2), RuntimeError, "scale_w: expected 1 or 3 for this Conv, found 2"),
        ("up", per_channel(2), RuntimeError, "expected 1 or 3 for this ConvTranspose, found 2"),
        ("gemm", per_channel(3), RuntimeError, "scale_w: expected 1 for this Gemm, found 3"),
        ("matmul", per_channel(3), RuntimeError, "scale_w: expected 1 for this MatMul, found 3"),
        ("pool", per_channel(3), RuntimeError, "scale_w: expected 1 for this AveragePool, found 3"),
        ("conv", {"offset_d": 128}, ValueError, "offset_d: expected -128 to 127 (8 bits), got 128"),
        ("conv", {"offset_d": -129}, ValueError, "expected -128 to 127 (8 bits), got -129"),
        (
            "conv",
            {"offset_d": 8, "act_type": "INT4"},
            ValueError,
            "offset_d: expected -8 to 7 (4 bits), got 8",
        ),
        (
            "conv",
            {"offset_d": 32768, "act_type": "INT16"},
            ValueError,
            "offset_d: expected -32768 to 32767 (16 bits), got 32768",
        ),
        ("conv", {"offset_w": (1,)}, ValueError, "offset_w: expected 0, got 1"),
        *(
            (
                "conv",
                {field: (value,) if field == "scale_w" else value},
                ValueError,
                f"{field}: expected a finite number above 0, got {value}",
            )
            for field in ("scale_d", "scale_w")
            for value in (0.0, -1.0, math.inf, math.nan)
        ),
        (
            "pool",
            {"tensor_balance_factor": (1.0,)},
            RuntimeError,
            "tensor_balance_factor: expected none for an AveragePool",
        ),
        (
            "conv",
            {"tensor_balance_factor": (1.0,) * 3},
            ValueError,
            "tensor_balance_factor: expected one per input channel (2), found 3",
        ),
        *(
            (
                "conv",
                {"tensor_balance_factor": (1.0, value)},
                ValueError,
                "tensor_balance_factor: expected 1.19209e-07 to 8.38861e+06, got",
            )
            for value in (EPS / 2, 2 / EPS, math.nan, math.inf, -1.0)
        ),
    ],
    ids=str,
)
def test_validation_refuses(layer, changes, error, message):
    with pytest.raises(error) as caught:
        Records({layer: record(**changes)}, source="record.txt").validate(TARGETS)
    assert str(caught.value).startswith(f'record.txt: layer "{layer}": ')
    assert message in str(caught.value)


def test_a_key_that_is_no_layer_is_refused():
    with pytest.raises(RuntimeError, match=r'layer "con": key: .*; did you mean "conv"\?'):
        Records({"con": record()}).validate(TARGETS)


@pytest.mark.parametrize(
    "layers",
    [{"conv": record(scale_d=None)}, {"conv": LayerRecord()}, {"up": record()}],
    ids=["no activation factors", "no factors", "no record"],
)
def test_an_unfinished_calibration_is_named_with_both_counts(layers):
    records = Records(layers, {"conv": (1, 2)})
    with pytest.raises(RuntimeError, match=r'unfinished: "conv" has seen 1 of 2 batches; run'):
        records.validate(TARGETS)
