"""hydrax_gpu.image: what is written and converted, against formulas that are computed here anew."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hydrax_gpu
from hydrax_gpu import image as subject
from hydrax_gpu.image import Coefs, from_srgb_hwc, open_srgb, write_chw, write_hwc
from tests.image_files import ramp

ROOT = Path(__file__).resolve().parents[2]
FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
EPSILON = {np.float16: 2**-10, np.float32: 2**-23, np.float64: 2**-52, ml_dtypes.bfloat16: 2**-7}


# ---------------------------------------------------------------------------------------------- coefficients


def standardised(values: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    return (values.astype(np.float64) - np.array(mean)) / np.array(std)


MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RANGES: dict[str, tuple[Coefs, int, Callable[[np.ndarray], np.ndarray]]] = {
    "fractional": (Coefs.FRACTIONAL, 3, lambda x: x / 255),
    "fractional, alpha": (Coefs.FRACTIONAL, 4, lambda x: x / 255),
    "ImageNet": (Coefs.IMAGENET_SRGB, 3, lambda x: standardised(x, MEAN, STD)),
    "ImageNet, alpha": (Coefs.IMAGENET_SRGB_ALPHA, 4, lambda x: standardised(x, [*MEAN, 0.0], [*STD, 255.0])),
    "balanced": (Coefs.balanced(), 3, lambda x: x / 127.5 - 1),
    "balanced, 2.5": (Coefs.balanced(2.5), 3, lambda x: 5 * (x / 255 - 0.5)),
    "balanced, alpha": (
        Coefs.balanced(2.0, alpha=True),
        4,
        lambda x: np.concatenate([4 * (x[..., :3] / 255 - 0.5), x[..., 3:] / 255], -1),
    ),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", RANGES)
def test_written_values_are_those_of_the_formula(name: str, dtype: Any) -> None:
    coefs, channels, formula = RANGES[name]
    picture = ramp(channels)
    last, first = np.empty((16, 16, channels), dtype), np.empty((channels, 16, 16), dtype)
    write_hwc(picture, last, coefs)
    write_chw(picture, first, coefs)
    expected = formula(picture.astype(np.float64))
    # two roundings, of values of up to 2.7 beside offsets of up to 2.5, and that of the offset itself
    np.testing.assert_allclose(last.astype(np.float64), expected, rtol=0, atol=8 * EPSILON[dtype])
    np.testing.assert_array_equal(first, last.transpose(2, 0, 1))


@pytest.mark.parametrize("name", RANGES)
def test_the_way_back_gives_every_byte_again(name: str) -> None:
    coefs, channels, _ = RANGES[name]
    written = np.empty((16, 16, channels), np.float32)
    write_hwc(ramp(channels), written, coefs)
    back = from_srgb_hwc(written, coefs, copy=True)
    assert back.mode == {3: "RGB", 4: "RGBA"}[channels]
    np.testing.assert_array_equal(np.asarray(back), ramp(channels))


@pytest.mark.parametrize(
    "numbers", [[255.0], [[1.0], [0.0], [0.0]], [[], []], [[0.0], [1.0]], [[1.0, math.nan], [0.0, 0.0]]]
)
def test_coefficients_that_make_no_sense_are_refused(numbers: Any) -> None:
    with pytest.raises(ValueError, match="Coefs takes"):
        Coefs(numbers)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_is_a_number_above_zero(scale: float) -> None:
    values = np.zeros((1, 1, 3), np.float32)
    for use in (
        lambda: Coefs.balanced(scale),
        lambda: subject.convert_frac_to_balanced_hwc(values, scale),
        lambda: subject.convert_balanced_to_frac_chw(np.zeros((3, 1, 1), np.float32), scale),
    ):
        with pytest.raises(ValueError, match="scale="):
            use()


def test_coefficients_cannot_be_changed_and_go_to_workers() -> None:
    assert not Coefs.IMAGENET_SRGB["float32"].flags.writeable
    assert Coefs.IMAGENET_SRGB["float32"] is Coefs.IMAGENET_SRGB[np.float32]
    again = pickle.loads(pickle.dumps(Coefs.IMAGENET_SRGB))
    np.testing.assert_array_equal(again[np.float64], Coefs.IMAGENET_SRGB[np.float64])
    assert repr(Coefs.FRACTIONAL) == "Coefs([[255.0], [0.0]])"


# ------------------------------------------------------------------------------------------- writing, way back


def test_without_coefficients_values_are_written_as_they_are() -> None:
    for dtype in (np.uint8, np.int16, *FLOATS):
        array = np.empty((16, 16, 3), dtype)
        write_hwc(Image.fromarray(ramp(3)), array)
        np.testing.assert_array_equal(array.astype(np.uint8), ramp(3))


def test_gray_fills_all_channels() -> None:
    gray = Image.fromarray(ramp(1)[..., 0])
    one, three = np.empty((16, 16, 1), np.uint8), np.empty((3, 16, 16), np.uint8)
    write_hwc(gray, one)
    write_chw(gray, three)
    np.testing.assert_array_equal(one, ramp(1))
    np.testing.assert_array_equal(three, np.stack([ramp(1)[..., 0]] * 3))


@pytest.mark.parametrize("shape", [(16, 15, 3), (15, 16, 3), (16, 16, 4), (16, 16), (2, 16, 16, 3), (16, 16, 1)])
def test_a_picture_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=r"\(16, 16, 3\) does not fit into an array for"):
        write_hwc(ramp(3), array)
    assert not array.any()


def test_channels_first_needs_three_axes() -> None:
    with pytest.raises(ValueError, match=r"\(channels, height, width\); got \(16, 16\)"):
        write_chw(ramp(3), np.zeros((16, 16), np.uint8))


def test_values_that_would_be_lost_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8 cannot hold all values of float64"):
        write_hwc(ramp(3) / 255, np.empty((16, 16, 3), np.uint8))
    with pytest.raises(TypeError, match="float32; got uint8"):
        write_hwc(ramp(3), np.empty((16, 16, 3), np.uint8), Coefs.FRACTIONAL)
    with pytest.raises(ValueError, match="coefficients for 3 channels do not fit a picture of 4"):
        write_hwc(ramp(4), np.empty((16, 16, 4), np.float32), Coefs.IMAGENET_SRGB)


def test_the_way_back_rounds_and_limits() -> None:
    values = np.array([[-3.0, 0.49, 0.5, 1.5, 254.6, 300.0]], np.float32) / 255
    back = np.asarray(from_srgb_hwc(values, Coefs([[255.0], [0.0]])))
    np.testing.assert_array_equal(back, [[0, 0, 0, 2, 255, 255]])


def test_nan_becomes_zero_with_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="1 values of a picture are NaN"):
        back = from_srgb_hwc(np.array([[math.nan, 1.0]], np.float32), Coefs.FRACTIONAL)
    np.testing.assert_array_equal(np.asarray(back), [[0, 255]])


def test_the_way_back_leaves_the_array_alone_if_asked_to_or_if_it_cannot_be_written_to() -> None:
    values = np.full((2, 2, 3), 0.5, np.float32)
    from_srgb_hwc(values, Coefs.FRACTIONAL, copy=True)
    assert (values == 0.5).all()
    values.setflags(write=False)
    assert from_srgb_hwc(values, Coefs.FRACTIONAL).getpixel((0, 0)) == (128, 128, 128)
    assert (values == 0.5).all()


def test_a_jax_array_goes_back_to_a_picture() -> None:
    import jax.numpy as jnp

    values = jnp.asarray(ramp(3), jnp.bfloat16) / 255
    assert from_srgb_hwc(values, Coefs.FRACTIONAL).size == (16, 16)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (3, "HSV"), (4, "RGBA"), (4, "RGBa")])
def test_channels_are_those_of_the_mode(channels: int, mode: str) -> None:
    back = from_srgb_hwc(ramp(channels) / 255, Coefs.FRACTIONAL, mode=mode)
    assert back.mode == mode
    assert back.tobytes() == ramp(channels).tobytes()


def test_the_way_back_says_what_it_cannot_take() -> None:
    with pytest.raises(TypeError, match="got uint8"):
        from_srgb_hwc(ramp(3), Coefs.FRACTIONAL)
    with pytest.raises(ValueError, match=r"shape \(height, width, channels\); got \(2, 16, 16, 3\)"):
        from_srgb_hwc(np.zeros((2, 16, 16, 3)), Coefs.FRACTIONAL)
    with pytest.raises(ValueError, match="5 channels"):
        from_srgb_hwc(np.zeros((2, 2, 5)), Coefs.FRACTIONAL)
    with pytest.raises(ValueError, match=r"3 channels .* mode RGBA"):
        from_srgb_hwc(np.zeros((2, 2, 3)), Coefs.FRACTIONAL, mode="RGBA")


# ---------------------------------------------------------------------------------------------------- colours

# sRGB's primaries and some grays in Oklab, as CSS Color Module Level 4 and its test implementations have them
OKLAB = {
    (1.0, 1.0, 1.0): (1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0): (0.62796, 0.22486, 0.12585),
    (0.0, 1.0, 0.0): (0.86644, -0.23389, 0.17950),
    (0.0, 0.0, 1.0): (0.45201, -0.03246, -0.31153),
    (0.5, 0.5, 0.5): (0.59818, 0.0, 0.0),
}


def oklab_by_xyz(rgb: tuple[float, float, float]) -> list[float]:
    """Oklab by its definition on CIE XYZ (D65), with sRGB's own matrix: another way than the one that is tested."""
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb)
    x = 0.4124564 * r + 0.3575761 * g + 0.1804375 * b
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = 0.0193339 * r + 0.1191920 * g + 0.9503041 * b
    l_, m_, s_ = (
        math.copysign(abs(value) ** (1 / 3), value)
        for value in (
            0.8189330101 * x + 0.3618667424 * y - 0.1288597137 * z,
            0.0329845436 * x + 0.9293118715 * y + 0.0361456387 * z,
            0.0482003018 * x + 0.2643662691 * y + 0.6338517070 * z,
        )
    )
    return [
        0.2104542553 * l_ + 0.7936177850 * m_ - 0.0040720468 * s_,
        1.9779984951 * l_ - 2.4285922050 * m_ + 0.4505937099 * s_,
        0.0259040371 * l_ + 0.7827717662 * m_ - 0.8086757660 * s_,
    ]


@pytest.mark.parametrize(("rgb", "lab"), OKLAB.items())
def test_colours_are_where_oklab_has_them(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    values = np.array(rgb, np.float64).reshape(1, 1, 3)
    subject.convert_srgb_to_oklab_frac_hwc(values)
    np.testing.assert_allclose(values.ravel(), lab, atol=1e-4)
    subject.convert_oklab_to_srgb_frac_hwc(values)
    np.testing.assert_allclose(values.ravel(), rgb, atol=1e-5)


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_any_colour_is_where_the_definition_by_xyz_has_it(rgb: tuple[float, float, float]) -> None:
    values = np.array(rgb, np.float64).reshape(1, 1, 3)
    subject.convert_srgb_to_oklab_frac_hwc(values)
    # the matrices of the two ways have been rounded apart; near black the cube root makes more of it
    np.testing.assert_allclose(values.ravel(), oklab_by_xyz(rgb), atol=1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_there_and_back_again(dtype: Any) -> None:
    picture = (ramp(3) / 255).astype(dtype)
    values = picture.copy()
    subject.convert_srgb_to_oklab_frac_hwc(values)
    assert abs(values.astype(np.float64) - picture.astype(np.float64)).max() > 0.1
    subject.convert_oklab_to_srgb_frac_hwc(values)
    # Half precision: roundings of the result, times the slopes of the way back. Else: a channel near 0 beside bright
    # ones is a small difference of large numbers, times 12.92; and the matrices are inverse in 7 digits.
    tolerance = max(20 * EPSILON[dtype], 2e-5)
    np.testing.assert_allclose(values.astype(np.float64), picture.astype(np.float64), atol=tolerance)


PAIRS = [
    (subject.convert_srgb_to_oklab_frac_hwc, subject.convert_srgb_to_oklab_frac_chw),
    (subject.convert_oklab_to_srgb_frac_hwc, subject.convert_oklab_to_srgb_frac_chw),
    (subject.convert_frac_to_balanced_hwc, subject.convert_frac_to_balanced_chw),
    (subject.convert_balanced_to_frac_hwc, subject.convert_balanced_to_frac_chw),
]


@pytest.mark.parametrize(("last", "first"), PAIRS)
@pytest.mark.parametrize("channels", [3, 4])
def test_batches_alpha_and_both_orders_of_axes(last: Any, first: Any, channels: int) -> None:
    one = (ramp(channels) / 255).astype(np.float32)
    expected = one.copy()
    last(expected)
    np.testing.assert_array_equal(expected[..., 3:], one[..., 3:])
    assert (expected[..., :3] != one[..., :3]).mean() > 0.9
    batch = np.stack([one, one])[None]
    last(batch)
    np.testing.assert_array_equal(batch, np.stack([expected, expected])[None])
    planes = np.ascontiguousarray(np.stack([one, one]).transpose(0, 3, 1, 2))
    first(planes)
    np.testing.assert_array_equal(planes, np.stack([expected, expected]).transpose(0, 3, 1, 2))
    strided = np.zeros((16, 32, channels), np.float32)
    strided[:, ::2] = one
    last(strided[:, ::2])
    np.testing.assert_array_equal(strided[:, ::2], expected)
    assert not strided[:, 1::2].any()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_balanced_values_go_from_minus_scale_to_scale(scale: float) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float64).reshape(2, 2, 3)
    subject.convert_frac_to_balanced_hwc(values, scale)
    np.testing.assert_allclose(values.ravel(), np.linspace(-scale, scale, 12))
    subject.convert_balanced_to_frac_hwc(values, scale)
    np.testing.assert_allclose(values.ravel(), np.linspace(0, 1, 12), atol=1e-15)


@pytest.mark.parametrize("function", [function for pair in PAIRS for function in pair])
def test_conversions_in_place_say_what_they_cannot_take(function: Any) -> None:
    with pytest.raises(TypeError, match="got uint8"):
        function(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="3 channels or more"):
        function(np.zeros((2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="3 channels or more"):
        function(np.zeros((3, 3), np.float32))
    fixed = np.zeros((3, 3, 3), np.float32)
    fixed.setflags(write=False)
    with pytest.raises(ValueError, match="pass a copy"):
        function(fixed)


# --------------------------------------------------------------------------------------------------- together


def load(path: str, arrays: Any, seed: int | None) -> None:
    picture = open_srgb(path)
    write_hwc(picture, arrays["last"], Coefs.FRACTIONAL)
    write_chw(picture, arrays["first"])


def test_a_loader_function_of_ones_own(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (6, 5), (number, 10 * number, 51)).save(path)
        paths.append(str(path))
    declared = {"last": ((5, 6, 3), "float32", "float32"), "first": ((3, 5, 6), "uint8", "uint8")}
    group = hydrax_gpu.DataGroup(4, paths, loader_arrays=declared)
    with hydrax_gpu.Dataloader(load, group, executor="inline") as batches:
        batch = next(iter(batches))
        np.testing.assert_allclose(np.asarray(batch.arrays["last"])[3, 4, 5], np.array([3, 30, 51]) / 255, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(batch.arrays["first"])[2, :, 4, 5], [2, 20, 51])


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_importing_it_loads_no_jax() -> None:
    done = run("import sys, hydrax_gpu.image; print(sorted({'jax', 'jaxlib', 'ml_dtypes'} & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_without_pillow_the_error_says_what_to_install() -> None:
    done = run("import sys; sys.modules['PIL'] = None; import hydrax_gpu.image")
    assert done.returncode == 1
    assert "hydrax_gpu.image needs Pillow" in done.stderr
    assert "hydrax-gpu[image]" in done.stderr


def test_the_names_are_those_of_hydrax() -> None:
    names = {"CONVERT_PERCEPTUAL", "CONVERT_RELATIVE", "Coefs", "from_srgb_hwc", "open_srgb", "set_max_image_pixels"}
    names |= {"write_chw", "write_hwc"}
    for way in ("srgb_to_oklab_frac", "oklab_to_srgb_frac", "frac_to_balanced", "balanced_to_frac"):
        names |= {f"convert_{way}_hwc", f"convert_{way}_chw"}
    assert set(subject.__all__) == names
    assert all(getattr(subject, name).__doc__ for name in names if not name.startswith("CONVERT"))
