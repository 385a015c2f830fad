"""`quantize`: the host build equals its twin, and what `dequantize` makes of a record is as near as is promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels import dequantize, quantize
from hydrax_gpu._kernels.formats import to_f32
from hydrax_gpu._kernels.quantize import BLOCK, INPUTS, Quantize, parts, record_nbytes
from tests.kernels import Rows, assert_same_bits, levels, values

COUNTS = st.one_of(st.integers(1, 200), st.integers(64 * 256 - 70, 64 * 256 + 70))


def restored(records: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    codes, scales = parts(records, count)
    return dequantize.twin(codes, scales, BLOCK, np.dtype(np.float32))


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(INPUTS),
    rows=st.integers(0, 3),
    count=COUNTS,
    offset=st.integers(0, 5),
    gap=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    tame=st.booleans(),
)
def test_the_host_build_equals_the_twin(
    dtype: str, rows: int, count: int, offset: int, gap: int, seed: int, tame: bool
) -> None:
    rng = np.random.default_rng(seed)
    source = Rows((rows, count), dtype, offset, gap)
    source.array[...] = rng.standard_normal((rows, count)) if tame else values(rng, (rows, count), dtype)
    codes, scales = quantize.twin(source.array)
    for library in (None, *levels()):
        out = Rows((rows, record_nbytes(count)), np.uint8, 4 * offset, 4 * gap)
        finite = Quantize(library, count, np.dtype(dtype))(source.array, out.array)
        got_codes, got_scales = parts(out.array, count)
        assert_same_bits(got_codes, codes)
        assert_same_bits(got_scales, scales)
        assert finite.tolist() == np.isfinite(to_f32(source.array)).all(axis=1).tolist()
        rest = out.array.copy()
        for part in parts(rest, count):
            part[...] = 0
        assert not rest.any(), "what is neither code nor scale must be the same each time: it has a checksum"
        out.assert_no_other_bytes()


@settings(max_examples=300, deadline=None)
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=150),
)
def test_values_come_back_within_half_a_scale(numbers: list[float]) -> None:
    given_values = np.array([numbers], np.float32)
    count = len(numbers)
    records = np.empty((1, record_nbytes(count)), np.uint8)
    assert Quantize(None, count, given_values.dtype)(given_values, records).all()
    errors = np.abs(restored(records, count)[0].astype(np.float64) - given_values[0].astype(np.float64))
    for begin in range(0, count, BLOCK):
        amax = float(np.abs(given_values[0, begin : begin + BLOCK].astype(np.float64)).max())
        assert errors[begin : begin + BLOCK].max() <= max(amax / 254 * 1.0001, 2.0**-126)
    assert (restored(records, count)[0][given_values[0] == 0] == 0).all()


def test_the_bound_is_reached() -> None:
    given_values = np.zeros((1, BLOCK), np.float32)
    given_values[0, :2] = 127.0, 0.5  # a scale of 1, and half of it
    records = np.empty((1, record_nbytes(BLOCK)), np.uint8)
    assert Quantize(None, BLOCK, given_values.dtype)(given_values, records).all()
    assert restored(records, BLOCK)[0, :3].tolist() == [127, 0, 0]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_by_row(odd: float) -> None:
    given_values = np.ones((3, 100), np.float32)
    given_values[1, 99] = odd
    records = np.empty((3, record_nbytes(100)), np.uint8)
    for library in (None, *levels()):
        assert Quantize(library, 100, given_values.dtype)(given_values, records).tolist() == [True, False, True]


def test_a_record_takes_a_byte_an_element_and_a_sixteenth() -> None:
    assert record_nbytes(64 * 64 * 4) == 64 * 64 * 4 * 17 // 16
    assert [record_nbytes(count) for count in (1, 64, 65)] == [16, 80, 80]
