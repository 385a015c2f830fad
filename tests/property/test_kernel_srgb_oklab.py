"""`srgb_oklab`: the host build equals its twins, and these are Oklab."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.srgb_oklab import LAB, SRGB, SrgbOklab, to_oklab, to_srgb
from tests.kernels import Rows, assert_same_bits, levels, values


@settings(max_examples=200, deadline=None)
@given(
    back=st.booleans(),
    srgb=st.sampled_from(SRGB),
    lab=st.sampled_from(LAB),
    other=st.booleans(),
    rows=st.integers(0, 3),
    pixels=st.one_of(st.integers(1, 40), st.integers(1020, 1030)),
    offset=st.integers(0, 5),
    gap=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_host_build_equals_the_twin(
    back: bool, srgb: str, lab: str, other: bool, rows: int, pixels: int, offset: int, gap: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    source, wanted = (lab, srgb) if back else (srgb, lab)
    way: Any = ("pixels" if back else "planes") if other else "last"
    shape = (3, pixels) if way == "pixels" else (pixels, 3)
    given_rows = Rows((rows, *shape), source, offset, gap)
    given_rows.array[...] = values(rng, (rows, *shape), source)
    if source != "uint8" and rng.random() < 0.5:  # colours that there are
        given_rows.array[...] = rng.random((rows, *shape))
    out_shape = (rows, 3, pixels) if way == "planes" else (rows, pixels, 3)
    expected = np.empty(out_shape, wanted)
    SrgbOklab(None, shape, np.dtype(source), np.dtype(wanted), way, back)(given_rows.array, expected)
    for library in levels():
        out = Rows(out_shape, wanted, gap, offset)
        SrgbOklab(library, shape, np.dtype(source), np.dtype(wanted), way, back)(given_rows.array, out.array)
        assert_same_bits(out.array, expected)
        out.assert_no_other_bytes()


def reference(srgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Oklab in float64, by its definition over CIE XYZ; this is independent of the matrices for linear sRGB."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    to_lms = [
        [0.8189330101, 0.3618667424, -0.1288597137],
        [0.0329845436, 0.9293118715, 0.0361456387],
        [0.0482003018, 0.2643662691, 0.6338517070],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    lms = linear @ np.array(to_xyz).T @ np.array(to_lms).T
    result: np.ndarray[Any, Any] = np.cbrt(lms) @ np.array(to_lab).T
    return result


def colours() -> np.ndarray[Any, Any]:
    steps = np.array([*range(0, 256, 15)], np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)


def test_it_is_oklab() -> None:
    grid = colours()
    expected = reference(grid / 255)
    # the two ways to the definition differ in the fourth decimal; see the table of the definition's author
    np.testing.assert_allclose(to_oklab(grid, np.dtype(np.float32)), expected, atol=6e-4)
    as_floats = (grid / np.float32(255)).astype(np.float32)
    np.testing.assert_allclose(to_oklab(as_floats, np.dtype(np.float32)), expected, atol=6e-4)


def test_white_is_one_and_grey_has_no_colour() -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(256, 3)
    lab = to_oklab(greys, np.dtype(np.float32))
    np.testing.assert_allclose(lab[255], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(lab[:, 1:], 0, atol=1e-6)
    assert (np.diff(lab[:, 0]) > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_come_back_from_oklab(dtype: str) -> None:
    grid = colours()
    off = to_srgb(to_oklab(grid, np.dtype(dtype)), np.dtype(np.uint8)).astype(int) - grid
    assert abs(off).max() <= (0 if dtype == "float32" else 2)


def test_floats_come_back_from_oklab_to_some_units_in_the_last_place() -> None:
    srgb = np.random.default_rng(0).random((10000, 3), np.float32)
    back = to_srgb(to_oklab(srgb, np.dtype(np.float32)), np.dtype(np.float32))
    np.testing.assert_allclose(back, srgb, atol=4e-5)  # the published inverse matrices have 10 digits, binary32 has 7


def test_what_is_not_a_number_gives_none() -> None:
    srgb = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [0.5, 0.5, 0.5]], np.float32)
    assert np.isnan(to_oklab(srgb, np.dtype(np.float32))).all(axis=1).tolist() == [True, True, False]
