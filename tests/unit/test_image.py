"""hydrax_gpu.image: what is written, converted and opened, against formulas that are computed here anew."""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, UnidentifiedImageError

import hydrax_gpu
from hydrax_gpu import image as subject
from hydrax_gpu.image import Coefs, from_srgb_hwc, open_srgb, set_max_image_pixels, write_chw, write_hwc

ROOT = Path(__file__).resolve().parents[2]
FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
EPSILON = {np.float16: 2**-10, np.float32: 2**-23, np.float64: 2**-52, ml_dtypes.bfloat16: 2**-7}


def ramp(channels: int) -> np.ndarray:
    """All 256 values in every channel, shape (16, 16, channels), each channel in another order."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([np.roll(values, 7 * channel) for channel in range(channels)], axis=-1)


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


# ---------------------------------------------------------------------------------------------------- opening


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def profile_of(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """An ICC profile (version 2, matrix and curves) of a display with these primaries, and no gamma."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    linear = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = {
        b"desc": text,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249),
        **{
            name: b"XYZ \0\0\0\0" + fixed(*value)
            for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), (red, green, blue), strict=True)
        },
        **{name: linear for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4sI4s4s4s", 132 + 12 * len(tags) + len(data), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + data


# sRGB's primaries, adapted to the profile's white (D50)
RED, GREEN, BLUE = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)


def of_linear(value: float) -> float:
    """sRGB's byte for a linear byte."""
    x = value / 255
    return 255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055)


def test_a_colour_profile_is_applied() -> None:
    # a display whose red is our blue, and which has no gamma
    profile = profile_of(BLUE, GREEN, RED)
    for convert in (subject.CONVERT_RELATIVE, subject.CONVERT_PERCEPTUAL):
        picture = open_srgb(encoded(Image.fromarray(ramp(3)), icc_profile=profile), convert=convert)
        assert picture.mode == "RGB"
        expected = np.vectorize(of_linear)(ramp(3)[..., ::-1].astype(np.float64))
        assert abs(np.asarray(picture).astype(np.float64) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "L"])
@pytest.mark.parametrize("source", ["L", "LA", "P", "RGB", "RGBA", "1", "P with alpha"])
def test_every_kind_of_picture_is_converted_with_its_profile_and_keeps_its_alpha(source: str, mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (200, 200, 200, 255 if source in ("L", "P", "RGB", "1") else 60))
    picture = picture.quantize(4) if source == "P with alpha" else picture.convert(source)
    kind = profile_of(RED, GREEN, BLUE)
    if source in ("L", "LA", "1"):  # a profile of RGB says nothing about gray: taken for sRGB, with a warning
        kind = b""
    opened = open_srgb(encoded(picture, **({"icc_profile": kind} if kind else {})), mode=mode)
    value = {"1": 255.0}.get(source, 200.0) if not kind else of_linear(200)
    alpha = 60 if source in ("LA", "RGBA", "P with alpha") else 255
    if mode == "RGBa":
        value = value * alpha / 255
    found = np.asarray(opened).reshape(4, 4, -1)[0, 0]
    assert opened.mode == mode
    assert abs(found[: min(3, len(found))].astype(float) - value).max() <= 2
    assert mode not in ("RGBA", "RGBa") or found[3] == alpha


def test_a_profile_that_is_of_no_use_is_logged_once_and_the_picture_taken_for_srgb(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = b"nothing of a profile, number 1"
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        for _ in range(2):
            picture = open_srgb(encoded(Image.fromarray(ramp(3)), icc_profile=broken))
            np.testing.assert_array_equal(np.asarray(picture), ramp(3))
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "a picture of mode RGB has a colour profile that cannot be used, and is taken for sRGB"
    ]


def test_without_the_intent_the_profiles_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, int]] = []
    build = ImageCms.buildTransform

    def spy(*arguments: Any) -> Any:
        asked.append((arguments[4], int(arguments[5])))
        return build(*arguments)

    monkeypatch.setattr(ImageCms, "isIntentSupported", lambda *_: -1)
    monkeypatch.setattr(ImageCms, "getDefaultIntent", lambda _: int(ImageCms.Intent.PERCEPTUAL))
    monkeypatch.setattr(ImageCms, "buildTransform", spy)
    # another profile than those of the other tests: conversions are remembered
    data = encoded(Image.fromarray(ramp(3)), icc_profile=profile_of(RED, BLUE, GREEN))
    open_srgb(data)
    # black point compensation is for the relative colorimetric intent
    assert asked == [(ImageCms.Intent.PERCEPTUAL, subject.CONVERT_PERCEPTUAL[1])]


def test_gray_of_sixteen_bits_is_scaled() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65408, 65535]], np.uint16)
    picture = open_srgb(encoded(Image.fromarray(values)), mode="L")
    np.testing.assert_array_equal(np.asarray(picture), [[round(value / 257) for value in values[0].tolist()]])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_paths_files_and_bytes_are_opened_and_nothing_stays_open(form: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(Image.new("RGB", (5, 3), (10, 200, 90)), form))
    before = len(os.listdir("/proc/self/fd"))
    pictures = [
        open_srgb(path),
        open_srgb(str(path)),
        open_srgb(path.read_bytes()),
        open_srgb(memoryview(path.read_bytes())),
    ]
    assert len(os.listdir("/proc/self/fd")) == before
    with path.open("rb") as file:
        pictures.append(open_srgb(file, formats=(form,)))
        assert not file.closed
    for picture in pictures:
        assert (picture.mode, picture.size) == ("RGB", (5, 3))
        assert abs(np.asarray(picture).astype(int) - [10, 200, 90]).max() <= 3
        assert picture.resize((2, 2)).size == (2, 2)


def test_what_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        open_srgb(whole[: len(whole) // 2])
    with pytest.raises(UnidentifiedImageError):
        open_srgb(b"no picture")
    with pytest.raises(UnidentifiedImageError):
        open_srgb(whole, formats=["PNG"])
    with pytest.raises(FileNotFoundError):
        open_srgb(tmp_path / "nothing")


@pytest.fixture
def limit_restored() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.mark.usefixtures("limit_restored")
def test_pictures_with_too_many_pixels_are_refused() -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    set_max_image_pixels(199)  # counts as 200
    with pytest.warns(Image.DecompressionBombWarning):
        open_srgb(data)
    set_max_image_pixels(198)
    with pytest.raises(Image.DecompressionBombError):
        open_srgb(data)
    set_max_image_pixels(400)
    open_srgb(data)
    set_max_image_pixels(None)
    assert Image.MAX_IMAGE_PIXELS is None
    with pytest.raises(ValueError, match="threshold=0"):
        set_max_image_pixels(0)


# --------------------------------------------------------------------------------------------------- together


def load(path: str, arrays: Any, seed: int | None) -> None:
    picture = open_srgb(path)
    write_hwc(picture, arrays["last"], Coefs.FRACTIONAL)
    write_chw(picture, arrays["first"])


def test_a_loader_function_of_ones_own(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded(Image.new("RGB", (6, 5), (number, 10 * number, 51))))
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
