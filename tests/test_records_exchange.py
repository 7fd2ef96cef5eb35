"""The record file between programs: what others write is read, what is read is written again."""

import struct
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from amct_pytorch.config.messages import message_class
from amct_pytorch.records import KVCacheRecord, LayerRecord, Records

PRUNE = """\
prune_record {
  producer {
    name: "conv"
    attr {
      name: "type"
      type: STRING
      s: "Conv2d"
    }
  }
  consumer {
    name: "bn"
  }
}
prune_record {
  selective_prune {
    name: "fc"
  }
}
"""
KV_ONLY = 'record { key: "k" kv_cache_value { scale: 0.5 scale: 2 offset: -3 offset: 0 } }'
BOTH = Records(
    {"conv": LayerRecord(0.1, -8), "k": LayerRecord(wts_type="INT8")},
    kv_cache={"k": KVCacheRecord((0.3,), (5,)), "v": KVCacheRecord((0.5, 1 / 3), (0, -128))},
)
BOTH_TEXT = """\
record {
  key: "conv"
  value {
    scale_d: 0.1
    offset_d: -8
  }
}
record {
  key: "k"
  value {
    wts_type: "INT8"
  }
  kv_cache_value {
    scale: 0.3
    offset: 5
  }
}
record {
  key: "v"
  kv_cache_value {
    scale: 0.5
    scale: 0.33333334
    offset: 0
    offset: -128
  }
}
"""


def as_message(text):
    message = message_class("scale_offset_record_pytorch", "AMCTPytorchProto.ScaleOffsetRecord")()
    return text_format.Parse(text, message)


def printed(message):
    """The text that protobuf itself prints."""
    return text_format.MessageToString(message, as_utf8=True)


# --- what is written -----------------------------------------------------------------------------


def test_kv_cache_factors_stand_beside_those_of_the_layer():
    assert BOTH.dumps() == BOTH_TEXT
    assert Records.parse(BOTH_TEXT) == BOTH


def test_a_file_of_kv_cache_factors_alone_has_no_quantized_layer():
    records = Records.parse(KV_ONLY)
    assert list(records) == []
    assert records.kv_cache == {"k": KVCacheRecord((0.5, 2.0), (-3, 0))}


def test_what_pruning_recorded_is_written_again():
    assert Records.parse(PRUNE + BOTH_TEXT).dumps() == BOTH_TEXT + PRUNE


float32 = st.floats(width=32, allow_nan=False)
offsets = st.integers(-(2**31), 2**31 - 1)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
layer_records = st.builds(
    LayerRecord,
    scale_d=st.none() | float32,
    offset_d=st.none() | offsets,
    scale_w=st.lists(float32, max_size=3).map(tuple),
    offset_w=st.lists(offsets, max_size=3).map(tuple),
    shift_bit=st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
    tensor_balance_factor=st.lists(float32, max_size=3).map(tuple),
    skip_fusion=st.none() | st.booleans(),
    dst_type=texts,
    act_type=texts,
    wts_type=texts,
    fakequant_precision_mode=texts,
    scale_h=st.none() | float32,
    offset_h=st.none() | offsets,
    scale_r=st.lists(float32, max_size=3).map(tuple),
    offset_r=st.lists(offsets, max_size=3).map(tuple),
)
kv_records = st.lists(st.tuples(float32, offsets), max_size=3).map(
    lambda pairs: KVCacheRecord(tuple(s for s, _ in pairs), tuple(o for _, o in pairs))
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


def reference_text(records):
    """The text that protobuf prints for `records`, filled in field by field."""
    message = as_message("")
    for name in {**records.layers, **records.kv_cache}:
        entry = message.record.add(key=name)
        parts = ((entry.value, records.layers), (entry.kv_cache_value, records.kv_cache))
        for part, source in parts:
            if name not in source:
                continue
            part.SetInParent()
            for field, value in vars(source[name]).items():
                if isinstance(value, tuple):
                    getattr(part, field).extend(value)
                elif value is not None:
                    setattr(part, field, value)
    return printed(message)


@given(
    st.dictionaries(names, layer_records, max_size=3),
    st.dictionaries(names, kv_records, max_size=2),
)
def test_the_text_is_that_of_protobuf_and_reads_back_equal(layers, kv_cache):
    records = Records(layers, kv_cache=kv_cache)
    assert records.dumps() == reference_text(records)
    if layers or kv_cache:
        assert Records.parse(records.dumps()) == records
        assert not records.diff(Records.parse(records.dumps()))


@given(float32)
def test_nine_digits_and_the_shortest_decimal_read_to_the_same_number(value):
    nine = Records.parse(f'record {{ key: "a" value {{ scale_d: {value:.9g} }} }}')
    assert struct.pack("f", nine["a"].scale_d) == struct.pack("f", value)
    assert Records.parse(nine.dumps()).dumps() == nine.dumps()


def test_a_field_that_is_absent_stays_absent():
    text = 'record {\n  key: "a"\n  value {\n  }\n}\n'
    assert Records.parse(text).dumps() == text


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'record { value { offset_d: -8 scale_d: 0.5 } key: "a" }',
        'record { key: "a" value { scale_d: 0.5 offset_d: -8 } }',
        'record: { key: "a" value: { scale_d: 0.5 offset_d: -8 } }',
        'record < key: "a" value < scale_d: 0.5 offset_d: -8 > >',
        'record { key: "a", value { scale_d: 0.5; offset_d: -8, }; }',
        'record: [{ key: "a" value { scale_d: 0.5 offset_d: -8 } }]',
        'record { key: "a" # a layer\n value { scale_d: 0.5 # its input\n offset_d: -8 } }',
        "record { key: 'a' value { scale_d: 5.0e-1f offset_d: -0x8 } }",
        'record {\r\n  key: "a"\r\n  value {\r\n    scale_d: 0.5 offset_d: -8\r\n  }\r\n}\r\n',
        '\ufeffrecord { key: "a" value { scale_d: 0.500000000 offset_d: -8 } }',
    ],
    ids=[
        "any order",
        "one line",
        "colons",
        "angle braces",
        "commas and semicolons",
        "a list of records",
        "comments",
        "other numbers",
        "line ends of Windows",
        "a byte order mark",
    ],
)
def test_any_spelling_is_read(tmp_path, text):
    path = tmp_path / "record.txt"
    path.write_text(text, newline="")
    assert Records.load(str(path)) == Records({"a": LayerRecord(0.5, -8)})


@pytest.mark.parametrize(
    "text",
    ["scale_w: [0.5, 2] offset_w: [0, 0]", "scale_w: 0.5 offset_w: [0] scale_w: 2 offset_w: 0"],
    ids=["short", "mixed"],
)
def test_lists_in_short_form_are_read(text):
    records = Records.parse(f'record {{ key: "a" value {{ {text} }} }}')
    assert records["a"] == LayerRecord(scale_w=(0.5, 2.0), offset_w=(0, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('record { key: "a" value {} }\nrecord { key: "a" value {} }', r':2: layer "a": .* second'),
        (
            'record { key: "a" value {} }\nrecord { key: "a" kv_cache_value {} }',
            r':2: layer "a": .* second',
        ),
        (
            'record {\n key: "a"\n value { scale_d: 1\n scale_d: 2 } }',
            r':4: layer "a": .*"scale_d"',
        ),
        ('record {\n key: "a" value {}\n value {} }', r':3: layer "a": .*multiple "value"'),
        ('record {\n key: "a" key: "b"\n value {} }', r':2: .*multiple "key"'),
        ('record { key: "a" kv_cache_value {} kv_cache_value {} }', r':1: .*"kv_cache_value"'),
        ('record { key: "a" value {\n offset_d: 2147483648 } }', r':2: layer "a": .*out of range'),
        ('record { key: "a" value {\n offset_d: 1.5 } }', r':2: layer "a": .*parse integer'),
        ('record { key: "a" value {\n shift_bit: -1 } }', r':2: layer "a": .*out of range'),
        ('record { key: "a" value {\n act_type: INT8 } }', r':2: layer "a": .*string'),
        ('record { key: "a" kv_cache_value { scale: 1 } }', r':1: layer "a": .*found 0'),
        (KV_ONLY[:-1], r':1: layer "k": Expected "}"'),
        ("x" * 10_000, r":1: \.\.\. "),
    ],
    ids=[
        "key twice",
        "key twice with kv cache",
        "factor twice",
        "value twice",
        "two keys in an entry",
        "kv cache twice",
        "offset too large for int32",
        "fraction for an integer",
        "negative shift",
        "text without quotes",
        "scale without offset",
        "cut off",
        "one long line",
    ],
)
def test_text_is_refused_with_its_place(text, message):
    with pytest.raises(RuntimeError, match=r"^record.txt" + message) as caught:
        Records.parse(text, "record.txt")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("cut", range(8, len(BOTH_TEXT) - 2, 7))
def test_a_file_that_is_cut_off_is_refused_or_ends_between_entries(cut):
    text = BOTH_TEXT[:cut]
    if as_entries(text):
        assert Records.parse(text).dumps() == text.rstrip("\n") + "\n"
    else:
        with pytest.raises(RuntimeError):
            Records.parse(text)


def as_entries(text):
    return text.rstrip("\n").endswith("\n}")


# --- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [bytes(range(256)), b"\0" * 64, b"\x89PNG\r\n\x1a\n", b"\x80\x04\x95", "é".encode("utf-16")],
    ids=["every byte", "zeros", "a picture", "a pickle", "UTF-16"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "record.txt"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"record\.txt"):
        Records.load(str(path))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        Records.load(str(tmp_path))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(PermissionError, match=r"record\.txt"):
        Records.load(str(tmp_path / "record.txt"))


def test_a_file_is_left_alone_by_reading(tmp_path):
    path = tmp_path / "record.txt"
    path.write_text(BOTH_TEXT)
    Records.load(str(path))
    assert Path(path).read_text() == BOTH_TEXT
