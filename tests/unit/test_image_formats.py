"""`ImageLoader` and the formats of pictures: each is read, and what one decoder refuses another reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from hydrax_gpu.loaders import ImageLoader
from tests import image_files as pictures
from tests.image_files import load, psnr
from tests.kernels import host


@pytest.mark.parametrize("kind", sorted(pictures.kinds()))
@pytest.mark.parametrize("color", ["RGB", "gray"])
def test_every_format_is_read(kind: str, color: Any) -> None:
    data = pictures.kinds()[kind]
    loader = ImageLoader((36, 48), crop=None, flip=0, color=color)
    got = load(loader, data)
    original = pictures.photograph(48, 36)
    if "alpha" in kind:
        behind = Image.new("RGB", original.size)
        behind.paste(original, mask=original.convert("L"))
        original = behind
    wanted = original.convert("RGB" if color == "RGB" else "L")
    if "gray" in kind or "16 bit" in kind or "bits" in kind:
        wanted = original.convert("L").convert(wanted.mode)
    if "gray alpha" in kind:
        luma = pictures.photograph(48, 36).convert("L")
        behind = Image.new("L", luma.size)
        behind.paste(luma, mask=luma)
        wanted = behind.convert(wanted.mode)
    if "bits" in kind:
        assert set(np.unique(got)) == {0, 255}
        return
    assert psnr(got, np.asarray(wanted).reshape(got.shape)) > (25 if "gif" in kind or "palette" in kind else 30)


def test_alpha_is_laid_over_the_background() -> None:
    half = Image.new("RGBA", (4, 4), (100, 200, 50, 128))
    got = load(ImageLoader(4, crop=None, flip=0, background=(255, 0, 10)), pictures.encoded(half, "PNG"))
    wanted = [(128 * color + 127 * behind) / 255 for color, behind in zip((100, 200, 50), (255, 0, 10), strict=True)]
    np.testing.assert_allclose(got, np.broadcast_to(wanted, (4, 4, 3)), atol=1)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    got = load(ImageLoader((1, 5), crop=None, color="gray", flip=0), pictures.encoded(Image.fromarray(values), "PNG"))
    assert got.ravel().tolist() == [0, 0, 1, 128, 255]


def test_a_profile_is_honoured_on_request() -> None:
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    assert lab.tobytes()
    profile = _swapped_profile()
    data = pictures.encoded(Image.new("RGB", (8, 8), (200, 40, 90)), "PNG", icc_profile=profile)
    plain = load(ImageLoader(8, crop=None, flip=0), data)
    assert plain[0, 0].tolist() == [200, 40, 90]
    converted = load(ImageLoader(8, crop=None, flip=0, srgb=True), data)
    assert np.abs(converted[0, 0].astype(int) - [40, 200, 90]).max() <= 3
    jpeg = pictures.encoded(Image.new("RGB", (8, 8), (200, 40, 90)), icc_profile=profile)
    loader = ImageLoader(8, crop=None, flip=0, srgb=True)
    assert np.abs(load(loader, jpeg)[0, 0].astype(int) - [40, 200, 90]).max() <= 4
    assert loader.take_counts() is None  # it was Pillow's turn, and nobody refused


def _swapped_profile() -> bytes:
    """sRGB's profile with red and green exchanged: its colorants' tags point at each other's data."""
    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_what_the_first_decoder_refuses_the_next_reads_and_it_is_counted() -> None:
    host()
    loader = ImageLoader((36, 48), crop=None)
    for _ in range(3):
        load(loader, pictures.kinds()["jpeg cmyk"])
    counts = loader.take_counts()
    assert counts is not None
    (line, count), *others = counts.items()
    assert not others
    assert count == 3
    assert line.startswith("libjpeg-turbo refused (4 components")
    assert line.endswith("Pillow decoded")
    assert loader.take_counts() is None
