"""`convert`: the host build equals its twin, and the twin what it is said to compute."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.convert import INPUTS, OUTPUTS, Convert, twin
from tests.kernels import Rows, assert_same_bits, levels, values

WAYS = ("last", "first", "planes", "pixels")


def item_shape(way: Any, pixels: int, channels: int) -> tuple[int, ...]:
    return (pixels, channels) if way in ("last", "planes") else (channels, pixels)


@settings(max_examples=300, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    source=st.sampled_from(INPUTS),
    wanted=st.sampled_from(OUTPUTS),
    rows=st.integers(0, 3),
    pixels=st.one_of(st.integers(0, 40), st.integers(1000, 1100), st.just(4099)),
    channels=st.sampled_from([1, 2, 3, 4, 5, 16, 17, 33]),
    offset=st.integers(0, 5),
    gap=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_host_build_equals_the_twin(
    way: Any, source: str, wanted: str, rows: int, pixels: int, channels: int, offset: int, gap: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = item_shape(way, pixels, channels)
    given_rows = Rows((rows, *shape), source, offset, gap)
    given_rows.array[...] = values(rng, (rows, *shape), source)
    scale, bias = rng.standard_normal((2, channels)).astype(np.float32)
    expected = twin(given_rows.array, scale, bias, way, np.dtype(wanted))
    for library in levels():
        out = Rows(expected.shape, wanted, gap, offset)
        Convert(library, shape, np.dtype(source), np.dtype(wanted), way, scale, bias)(given_rows.array, out.array)
        assert_same_bits(out.array, expected)
        out.assert_no_other_bytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [1023, 1025, 3000])
def test_the_host_build_equals_the_twin_with_very_many_channels(way: Any, channels: int) -> None:
    rng = np.random.default_rng(channels)
    shape = item_shape(way, 7, channels)
    rows = values(rng, (2, *shape), np.int16)
    scale, bias = rng.standard_normal((2, channels)).astype(np.float32)
    expected = twin(rows, scale, bias, way, np.dtype(np.float32))
    for library in levels():
        out = np.empty_like(expected)
        Convert(library, shape, np.dtype(np.int16), np.dtype(np.float32), way, scale, bias)(rows, out)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("wanted", OUTPUTS)
def test_every_half_precision_number_survives_or_is_rounded_as_the_standard_says(wanted: str) -> None:
    # all 65536 bit patterns of both 16-bit formats, against the conversions of NumPy and ml_dtypes
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    for source in (np.float16, ml_dtypes.bfloat16):
        rows = np.arange(65536, dtype=np.uint16).view(source).reshape(1, -1, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = rows.astype(np.float32) + np.float32(0)
            if wanted == "uint8":
                expected = np.nan_to_num(np.rint(expected), nan=0, posinf=255, neginf=0).clip(0, 255)
            expected = expected.astype(wanted)
        for library in (None, *levels()):
            out = np.empty(rows.shape, wanted)
            Convert(library, (65536, 1), np.dtype(source), np.dtype(wanted), "last", one, zero)(rows, out)
            np.testing.assert_array_equal(out.astype(np.float32), expected.astype(np.float32))


def test_rounding_is_to_nearest_even_and_saturates() -> None:
    rows = np.array([0.5, 1.5, 2.5, -0.5, -3, 254.5, 255.5, 1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    out = twin(rows.reshape(1, -1, 1), one, zero, "last", np.dtype(np.uint8))
    assert out.ravel().tolist() == [0, 2, 2, 0, 0, 254, 255, 255, 0, 255, 0, 0]


def test_product_and_sum_are_each_rounded() -> None:
    # fused they would give 2**-24
    rows = np.full((1, 64, 1), 1 + 2**-12, np.float32)
    scale, bias = np.full((2, 1), 1 + 2**-12, np.float32)
    expected = np.float32(rows[0, 0, 0] * scale[0]) - np.float32(1 + 2**-11)
    assert expected == 0
    for library in (None, *levels()):
        out = np.empty_like(rows)
        bias[0] = -(1 + 2**-11)
        Convert(library, (64, 1), rows.dtype, out.dtype, "last", scale, bias)(rows, out)
        assert not out.any()
