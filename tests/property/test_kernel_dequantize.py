"""`dequantize`: the host build equals its twin, and the twin what it is said to compute."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.dequantize import CODES, OUTPUTS, SCALES, Dequantize, twin, unpack_int4
from tests.kernels import Rows, assert_same_bits, levels, values


@settings(max_examples=200, deadline=None)
@given(
    codes=st.sampled_from([*CODES, "uint8"]),
    scales=st.sampled_from(SCALES),
    wanted=st.sampled_from(OUTPUTS),
    rows=st.integers(0, 3),
    lines=st.sampled_from([(), (1,), (3,), (2, 2)]),
    half_width=st.one_of(st.integers(1, 40), st.integers(2040, 2060)),
    half_block=st.sampled_from([1, 2, 3, 16, 64, 5000]),
    offset=st.integers(0, 5),
    gap=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_host_build_equals_the_twin(
    codes: str, scales: str, wanted: str, rows: int, lines: tuple[int, ...], half_width: int, half_block: int,
    offset: int, gap: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    width, block = 2 * half_width, 2 * half_block
    given_codes = Rows((rows, *lines, half_width if codes == "uint8" else width), codes, offset, gap)
    given_codes.array[...] = values(rng, given_codes.array.shape, codes)
    given_scales = Rows((rows, *lines, -(-width // block)), scales, gap, offset)
    given_scales.array[...] = values(rng, given_scales.array.shape, scales)
    expected = twin(given_codes.array, given_scales.array, block, np.dtype(wanted))
    for library in levels():
        out = Rows((rows, *lines, width), wanted, offset, gap)
        Dequantize(
            library, (*lines, width), block, np.dtype(codes), np.dtype(scales), np.dtype(wanted)
        )(given_codes.array, given_scales.array, out.array)  # fmt: skip
        assert_same_bits(out.array, expected)
        out.assert_no_other_bytes()


@pytest.mark.parametrize("block", [1, 3, 7])
def test_blocks_of_odd_size_and_odd_lines(block: int) -> None:
    rng = np.random.default_rng(block)
    codes, scales = values(rng, (2, 3, 11), np.int8), values(rng, (2, 3, -(-11 // block)), np.float32)
    expected = twin(codes, scales, block, np.dtype(np.float32))
    for library in levels():
        out = np.empty((2, 3, 11), np.float32)
        Dequantize(library, (3, 11), block, codes.dtype, scales.dtype, out.dtype)(codes, scales, out)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_every_code_has_the_value_that_ml_dtypes_gives_it(dtype: type) -> None:
    codes = np.arange(256, dtype=np.uint8).view(dtype).reshape(1, 256)
    scale = np.ones((1, 1), np.float32)
    for library in (None, *levels()):
        out = np.empty((1, 256), np.float32)
        Dequantize(library, (256,), 256, codes.dtype, scale.dtype, out.dtype)(codes, scale, out)
        np.testing.assert_array_equal(out, codes.astype(np.float32))


def test_four_bit_codes_are_signed_and_the_first_is_in_the_low_bits() -> None:
    assert unpack_int4(np.array([0x80, 0x7F], np.uint8)).tolist() == [0, -8, -1, 7]


def test_each_block_has_its_scale() -> None:
    codes, scales = np.arange(5, dtype=np.int8), np.array([10, 100, 1000], np.float32)
    assert twin(codes, scales, 2, np.dtype(np.float32)).tolist() == [0, 10, 200, 300, 4000]
