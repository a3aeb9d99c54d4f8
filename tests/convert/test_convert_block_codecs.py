"""Codes of other packages, without these: tables, the nearest code, and the way there and back."""

import ml_dtypes
import numpy as np
import pytest

from steepest.convert import block_codecs

CODECS = {
    f"{name}-{'signed' if signed else 'unsigned'}": (codec, signed)
    for name in ("BITSANDBYTES", "TORCHAO_8BIT", "TORCHAO_4BIT", "TORCHAO_FP8", "FLASHOPTIM")
    for signed, codec in getattr(block_codecs, name).items()
}
each = pytest.mark.parametrize("kind", CODECS)


def drawn(size, signed, seed=0):
    """Numbers whose sizes differ by decades, within a block and between blocks; a zero block."""
    random = np.random.default_rng(seed)
    x = random.normal(size=size) * 10.0 ** random.uniform(-4, 0, size)
    x *= np.repeat(10.0 ** random.uniform(-3, 3, size // 128 + 1), 128)[:size]
    x[512:1024] = 0.0
    return (x if signed else x**2).astype(np.float32)


def relative(codec, x):
    """Numbers over the largest of their block, and that for each number."""
    y = np.sqrt(x) if codec.root else x
    full = np.pad(np.abs(y), (0, -y.size % codec.block)).reshape(-1, codec.block)
    largest = np.repeat(full.max(axis=1), codec.block)[: y.size]
    return y, largest


@each
@pytest.mark.parametrize("size", [1, 31, 256, 5000])
def test_each_number_becomes_one_that_is_within_half_a_code(kind, size):
    """Half the distance of the two numbers of codes between which it lies; where the largest of a
    block is negative and there is no -1, the distance from it to the lowest."""
    codec, signed = CODECS[kind]
    x = drawn(size, signed)
    codes, factors = codec.encoded(x)
    assert codes.shape == x.shape and factors.shape == (-(-size // codec.block),)
    y, largest = relative(codec, x)
    found = codec.decoded(codes, factors)
    found = np.sqrt(found) if codec.root else found
    numbers = np.sort(codec.numbers[np.isfinite(codec.numbers)]) / np.float32(codec.top)
    at = np.where(largest > 0, y / np.where(largest > 0, largest, 1), 0)
    upper = np.clip(np.searchsorted(numbers, at), 1, numbers.size - 1)
    half = (numbers[upper] - numbers[upper - 1]) / 2
    outside = np.maximum(numbers[0] - at, 0)
    if codec.block == 32 and signed:  # nearest after the map 2x / (1 + |x|), not before
        half = (numbers[np.minimum(upper + 1, numbers.size - 1)] - numbers[upper - 1]) / 2
    np.testing.assert_array_less(
        np.abs(found - y), (np.maximum(half, outside) * (1 + 1e-5) + 1e-7) * largest + 2e-12
    )


@each
def test_what_came_of_codes_gets_them_back(kind):
    """Whatever the codes are, if one of them is what the largest number of a block becomes."""
    codec, _ = CODECS[kind]
    random = np.random.default_rng(1)
    size = np.abs(codec.numbers)
    ends = np.flatnonzero(np.isin(size, np.float32([codec.top, *codec.ends])))
    assert ends.size >= (2 if (codec.numbers < 0).any() else 1)
    for end in ends:
        codes = random.choice(np.flatnonzero(size < size[end]), (50, codec.block)).astype(np.uint8)
        codes[:, 7] = end
        factors = (10.0 ** random.uniform(-6, 4, 50)).astype(np.float16).astype(np.float32)
        x = codec.decoded(codes, factors)
        again, same = codec.encoded(x)
        np.testing.assert_array_equal(again, codes)
        np.testing.assert_array_equal(codec.decoded(again, same), x)
        np.testing.assert_array_max_ulp(same, factors, 1)


@each
def test_blocks_are_those_of_c_order_whatever_is_computed_at_once(kind, monkeypatch):
    codec, signed = CODECS[kind]
    x = drawn(6000, signed).reshape(60, 100)
    codes, factors = codec.encoded(np.asfortranarray(x))
    monkeypatch.setattr(block_codecs, "_AT_ONCE", 700)
    flat, same = codec.encoded(x.reshape(-1))
    np.testing.assert_array_equal(codes.reshape(-1), flat)
    np.testing.assert_array_equal(factors, same)
    np.testing.assert_array_equal(
        codec.decoded(codes, factors).reshape(-1), codec.decoded(flat, same)
    )


def test_dynamic_maps_have_half_as_many_numbers_in_each_lower_decade():
    for signed in (True, False):
        numbers = block_codecs.dynamic_map(8, signed)
        assert numbers.shape == (256,) and (np.diff(numbers) > 0).all() and 0 in numbers
        assert numbers[-1] == 1
        positive = numbers[(numbers > 0) & (numbers < 1)]
        decades = np.floor(np.log10(positive)).astype(int)
        assert np.bincount(-decades)[1:].tolist() == [
            2**i << (not signed) for i in range(6, -1, -1)
        ]
        if signed:
            np.testing.assert_array_equal(np.sort(-positive), numbers[numbers < 0])


def test_fp8_is_that_of_ml_dtypes():
    """All codes, and the nearest code of all numbers half way between two, and beside these."""
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        block_codecs.e4m3(), codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    )
    numbers = block_codecs.e4m3()[:127]
    half = (numbers[:-1] + numbers[1:]) / 2
    x = np.concatenate([numbers, half, np.nextafter(half, 0), np.nextafter(half, 999)])
    x = np.concatenate([x, -x]).astype(np.float32)
    codec = block_codecs.TORCHAO_FP8[True]
    expected = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(codec.nearest(x), expected)


def test_two_codes_of_four_bits_in_a_byte():
    codes = np.array([[1, 2], [15, 0]], np.uint8)
    assert block_codecs.packed(codes).tolist() == [0x12, 0xF0]
