"""The host module: packing for the deploy model."""

import numpy as np
import pytest

from amct_pytorch import _host

# ---- int4 ----


def test_even_index_in_the_low_nibble():
    packed = _host.pack_int4(np.array([1, -2, 3, -4], np.int8), 0)
    assert packed.dtype == np.int8
    assert packed.tolist() == [-31, -61]
    assert packed.view(np.uint8).tolist() == [0xE1, 0xC3]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_axis(axis, order):
    codes = np.random.default_rng(0).integers(-8, 8, (4, 6, 8)).astype(np.int8, order=order)
    packed = _host.pack_int4(codes, axis)
    even, odd = (codes.take(range(i, codes.shape[axis], 2), axis) for i in (0, 1))
    assert np.array_equal((packed << 4).astype(np.int8) >> 4, even)
    assert np.array_equal(packed >> 4, odd)


def test_every_pair_of_codes():
    even, odd = np.meshgrid(np.arange(-8, 8, dtype=np.int8), np.arange(-8, 8, dtype=np.int8))
    packed = _host.pack_int4(np.stack([even.ravel(), odd.ravel()]), 0)
    assert len(np.unique(packed)) == 256


def test_strided_and_empty_codes():
    codes = np.arange(-8, 8, dtype=np.int8)
    assert np.array_equal(_host.pack_int4(codes[::2], 0), _host.pack_int4(codes[::2].copy(), 0))
    assert _host.pack_int4(np.zeros((2, 0), np.int8), 0).shape == (1, 0)


def test_codes_that_do_not_pack():
    with pytest.raises(ValueError, match="even size along axis 1, got 3"):
        _host.pack_int4(np.zeros((2, 3), np.int8), 1)
    with pytest.raises(ValueError, match=r"codes must be in \[-8, 7\], got 8"):
        _host.pack_int4(np.array([0, 8], np.int8), 0)
    with pytest.raises(ValueError, match="got -9"):
        _host.pack_int4(np.array([-9, 0], np.int8), 0)
    with pytest.raises(IndexError, match="axis 1"):
        _host.pack_int4(np.zeros(2, np.int8), 1)
    with pytest.raises(TypeError, match="codes: expected dtype int8, got int64"):
        _host.pack_int4(np.zeros(2, np.int64), 0)
    with pytest.raises(TypeError, match=r"codes: expected a numpy.ndarray, got list"):
        _host.pack_int4([1, 2], 0)


# ---- the dequantization parameter ----


def words(scale, offset, shift):
    return _host.dequant_words(
        np.array(scale, np.float32), np.array(offset, np.int8), np.array(shift, np.uint8)
    )


def test_word_without_offset_and_shift_is_the_scale():
    scale_d, scale_w = np.float32(0.02), np.array([0.004, 0.008], np.float32)
    word = words(scale_d * scale_w, [0, 0], [0, 0])
    assert word.dtype == np.uint64
    assert word.tolist() == [950519213, 958907821]


def test_fields_of_a_word():
    assert words([1.0], [-1], [3]).tolist() == [0xFF_03_3F800000]
    assert words([1.0], [127], [255]).tolist() == [0x7F_FF_3F800000]


def test_unpacking_returns_what_was_packed():
    scale = np.array([8e-5, 0.1, 1.0, 3e38, 1e-45], np.float32)
    offset = np.array([0, -128, 127, -1, 5], np.int8)
    shift = np.array([0, 1, 15, 128, 255], np.uint8)
    got = _host.unpack_dequant_words(_host.dequant_words(scale, offset, shift))
    for array, expected in zip(got, (scale, offset, shift), strict=True):
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)


def test_words_of_no_channel():
    assert words([], [], []).shape == (0,)


def test_factors_that_make_no_words():
    with pytest.raises(ValueError, match="offset must have the length of scale, 2, got 1"):
        words([1.0, 2.0], [0], [0, 0])
    with pytest.raises(ValueError, match="scale must have 1 dimension, got 0"):
        words(1.0, [0], [0])
    with pytest.raises(TypeError, match="shift: expected dtype uint8, got int8"):
        _host.dequant_words(np.ones(1, np.float32), np.zeros(1, np.int8), np.zeros(1, np.int8))
    with pytest.raises(TypeError, match="words: expected dtype uint64, got int64"):
        _host.unpack_dequant_words(np.zeros(1, np.int64))


# ---- the build ----


def test_build_info_says_what_it_was_built_with():
    info = _host.build_info()
    assert info["torch_floor"] == "2.10"
    assert info["cxx_standard"] in ("C++17", "C++20")
    assert info["compiler"]
