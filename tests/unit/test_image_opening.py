"""hydrax_gpu.image: pictures that are opened, in every format and mode, with their profiles."""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

from hydrax_gpu import image as subject
from hydrax_gpu.image import open_srgb, set_max_image_pixels
from tests.image_files import ramp


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
