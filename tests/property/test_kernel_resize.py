"""`resize_crop_flip_normalize`: the host build equals its twin, and the twin is the filter that it is said to be."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.resize_crop_flip_normalize import EIGHTHS, OUTPUTS, Box, Resize, Turn, taps, twin, weights
from tests.kernels import Rows, assert_same_bits, levels

TURNS = [Turn(*each) for each in itertools.product([False, True], repeat=3)]


@st.composite
def boxes(draw: Any, columns: int, rows: int) -> Box:
    def part(pixels: int) -> tuple[int, int]:
        begin = draw(st.integers(0, EIGHTHS * pixels - 1))
        return begin, draw(st.integers(1, EIGHTHS * pixels - begin))

    (x, width), (y, height) = part(columns), part(rows)
    return Box(x, y, width, height)


def reference(picture: np.ndarray[Any, Any], box: Box, height: int, width: int) -> np.ndarray[Any, Any]:
    """The filter in float64, straight from its formula: triangle, half-pixel centres, support by the reduction."""

    def matrix(count: int, begin: float, length: float, pixels: int) -> np.ndarray[Any, Any]:
        scale = length / count
        support = max(scale, 1.0)
        centre = begin + (np.arange(count)[:, None] + 0.5) * scale
        index = np.arange(pixels)
        weight = np.maximum(0.0, 1 - np.abs(index + 0.5 - centre) / support)
        weight[:, (index + 1 <= begin) | (index >= begin + length)] = 0  # not in the box
        return weight / weight.sum(axis=1, keepdims=True)

    x, y, w, h = (value / EIGHTHS for value in box)
    across, down = matrix(width, x, w, picture.shape[1]), matrix(height, y, h, picture.shape[0])
    return np.einsum("yr,rck,xc->yxk", down, picture.astype(np.float64), across)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    pixel=st.sampled_from([1, 3, 4]),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    layout=st.sampled_from(["HWC", "CHW"]),
    dtype=st.sampled_from(OUTPUTS),
    affine=st.booleans(),
    turn=st.sampled_from(TURNS),
    offset=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_host_build_equals_the_twin(
    data: Any, rows: int, columns: int, pixel: int, height: int, width: int, layout: Any, dtype: str, affine: bool,
    turn: Turn, offset: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    channels = min(pixel, 3)
    picture = Rows((rows, columns * pixel), np.uint8, offset, offset).array
    picture[...] = rng.integers(0, 256, picture.shape)
    picture = np.lib.stride_tricks.as_strided(picture, (rows, columns, pixel), (picture.strides[0], pixel, 1))
    box = data.draw(boxes(columns, rows))
    scale, bias = (rng.standard_normal((2, channels)).astype(np.float32)) if affine else (None, None)
    shape = (height, width, channels) if layout == "HWC" else (channels, height, width)

    def run(library: Any, *, direct: bool = False) -> np.ndarray[Any, Any]:
        resize = Resize(library, height, width, channels, layout, np.dtype(dtype), scale, bias)
        out = Rows((1, *shape), dtype, offset)
        resize(picture, box, out.array[0], turn=turn, direct=direct)
        result = out.array.copy()
        out.assert_no_other_bytes()
        return result

    expected = run(None)
    for library in levels():
        assert_same_bits(run(library), expected)
        assert_same_bits(run(library, direct=True), expected)


@pytest.mark.parametrize("size", [(7, 3000), (3000, 5), (1200, 1100)])
def test_large_reductions_equal_the_twin(size: tuple[int, int]) -> None:
    rows, columns = size
    picture = np.random.default_rng(0).integers(0, 256, (rows, columns, 4), np.uint8)
    box = Box(3, 1, EIGHTHS * columns - 5, EIGHTHS * rows - 2)
    wanted, out = np.empty((2, 4, 3, 3), np.uint8)
    Resize(None, 4, 3, 3, "HWC", np.dtype(np.uint8))(picture, box, wanted)
    for library in levels():
        for direct in (False, True):
            Resize(library, 4, 3, 3, "HWC", np.dtype(np.uint8))(picture, box, out, direct=direct)
            assert_same_bits(out, wanted)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), rows=st.integers(1, 60), columns=st.integers(1, 60), height=st.integers(1, 40),
       width=st.integers(1, 40), seed=st.integers(0, 2**32))  # fmt: skip
def test_the_twin_is_the_triangle_filter(
    data: Any, rows: int, columns: int, height: int, width: int, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    box = data.draw(boxes(columns, rows))
    got = twin(picture, box, height, width, 3) / 2**21
    # weights are rounded to 2**-14 and the rows between to 2**-7
    many = taps(width, box.width) + taps(height, box.height)
    assert np.abs(got - reference(picture, box, height, width)).max() <= 2**-8 + many * 255 * 2**-15


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 400), begin=st.integers(0, 4000), length=st.integers(1, 4000))
def test_weights_are_never_negative_and_sum_to_one_exactly(count: int, begin: int, length: int) -> None:
    pixels, each = weights(count, begin, length)
    assert (each >= 0).all()
    assert (each.sum(axis=1) == 1 << 14).all()
    used = pixels[each > 0]
    assert used.min() >= begin // EIGHTHS
    assert used.max() < -(-(begin + length) // EIGHTHS)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), value=st.integers(0, 255), rows=st.integers(1, 300), height=st.integers(1, 30))
def test_a_plain_area_keeps_its_value_at_any_reduction(data: Any, value: int, rows: int, height: int) -> None:
    picture = np.full((rows, 9, 3), value, np.uint8)
    box = data.draw(boxes(9, rows))
    assert (((twin(picture, box, height, 4, 3) + (1 << 20)) >> 21) == value).all()


def test_a_box_of_the_size_of_the_result_is_copied() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    out = np.empty((10, 12, 3), np.uint8)
    Resize(None, 10, 12, 3, "HWC", np.dtype(np.uint8))(picture, Box(5 * 8, 4 * 8, 12 * 8, 10 * 8), out)
    np.testing.assert_array_equal(out, picture[4:14, 5:17])


def test_it_agrees_with_pillow_to_the_last_but_the_rounding_between_the_passes() -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (61, 83, 3), np.uint8)
    for _ in range(20):
        x, y = int(rng.integers(0, 40)), int(rng.integers(0, 30))
        w, h = int(rng.integers(1, 83 - x)), int(rng.integers(1, 61 - y))
        part = Image.fromarray(picture).crop((x, y, x + w, y + h))
        theirs = np.asarray(part.resize((24, 17), Image.Resampling.BILINEAR)).astype(int)
        ours = (twin(picture, Box(8 * x, 8 * y, 8 * w, 8 * h), 17, 24, 3) + (1 << 20)) >> 21
        assert np.abs(ours - theirs).max() <= 1


def test_pixels_outside_of_the_box_do_not_matter() -> None:
    picture = np.zeros((30, 30, 3), np.uint8)
    picture[10:20, 5:25] = 200
    sums = twin(picture, Box(5 * 8, 10 * 8, 20 * 8, 10 * 8), 7, 7, 3)
    assert ((sums + (1 << 20)) >> 21 == 200).all()


def test_values_are_scaled_and_shifted_by_channel() -> None:
    picture = np.array([[[10, 20, 30]]], np.uint8)
    out = np.empty((3, 2, 2), ml_dtypes.bfloat16)
    scale, bias = np.array([2, 1, 0.5], np.float32), np.array([0, -20, 1], np.float32)
    Resize(None, 2, 2, 3, "CHW", out.dtype, scale, bias)(picture, Box(0, 0, 8, 8), out)
    assert out.astype(float).tolist() == [[[20, 20]] * 2, [[0, 0]] * 2, [[16, 16]] * 2]


@pytest.mark.parametrize("box", [Box(-1, 0, 8, 8), Box(0, 0, 0, 8), Box(0, 0, 25, 8), Box(0, 1, 8, 24)])
def test_a_box_that_is_not_in_the_picture_is_refused(box: Box) -> None:
    resize = Resize(None, 2, 2, 3, "HWC", np.dtype(np.uint8))
    with pytest.raises(ValueError, match="eighths of a pixel"):
        resize(np.zeros((3, 3, 3), np.uint8), box, np.empty((2, 2, 3), np.uint8))


def test_exact_fractions_say_what_the_integers_say() -> None:
    # an example by hand: 3 pixels of 10, 20 and 60 become 2
    picture = np.array([[[10], [20], [60]]], np.uint8)
    # scale 3/2, centres 3/4 and 9/4, distances 1/4, 3/4, 7/4 of a support of 3/2: weights 5/6, 1/2, 0
    left = (Fraction(5, 6) * 10 + Fraction(1, 2) * 20) / (Fraction(5, 6) + Fraction(1, 2))
    sums = twin(picture, Box(0, 0, 24, 8), 1, 2, 1)
    assert abs(sums[0, 0, 0] / 2**21 - float(left)) < 2**-7
