"""`unpack_bits`: the host build equals its twin, and the twin what it is said to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.unpack_bits import UnpackBits, twin
from tests.kernels import Rows, assert_same_bits, levels, values


@settings(max_examples=200, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 4]),
    order=st.sampled_from(["big", "little"]),
    dtype=st.sampled_from(["bool", "uint8", "int8", "int32", "float16", "bfloat16", "float32"]),
    rows=st.integers(0, 3),
    lines=st.sampled_from([(), (1,), (3,), (2, 2)]),
    width=st.one_of(st.integers(1, 40), st.integers(8180, 8210)),
    offset=st.integers(0, 17),
    gap=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_host_build_equals_the_twin(
    bits: int, order: Any, dtype: str, rows: int, lines: tuple[int, ...], width: int, offset: int, gap: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    line_bytes = -(-width * bits // 8)
    packed = Rows((rows, *lines, line_bytes), np.uint8, offset, gap)
    packed.array[...] = values(rng, packed.array.shape, np.uint8)
    becomes = rng.integers(0, 2, 2**bits).astype(dtype) if dtype == "bool" else values(rng, (2**bits,), dtype)
    expected = twin(packed.array, bits, order, width, becomes)
    for library in levels():
        out = Rows((rows, *lines, width), dtype, gap, offset)
        UnpackBits(library, (*lines, width), bits, order, becomes)(packed.array, out.array)
        assert_same_bits(out.array, expected)
        out.assert_no_other_bytes()


@pytest.mark.parametrize("order", ["big", "little"])
def test_one_bit_is_what_numpy_packs(order: Any) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (3, 5, 13)).astype(np.uint8)
    packed = np.packbits(mask, axis=-1, bitorder=order)
    np.testing.assert_array_equal(twin(packed, 1, order, 13, np.arange(2, dtype=np.uint8)), mask)


def test_the_first_element_is_in_the_high_bits_of_a_big_endian_byte_and_in_the_low_bits_of_a_little_endian_one() -> (
    None
):
    byte, numbers = np.array([0b11_10_01_00], np.uint8), np.arange(16, dtype=np.uint8)
    assert twin(byte, 2, "big", 4, numbers[:4]).tolist() == [3, 2, 1, 0]
    assert twin(byte, 2, "little", 4, numbers[:4]).tolist() == [0, 1, 2, 3]
    assert twin(byte, 4, "big", 2, numbers).tolist() == [14, 4]
    assert twin(byte, 4, "little", 1, numbers).tolist() == [4]
