"""Pictures for the tests: photograph-like ones made of noise, in every format and kind that Pillow writes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from hydrax_gpu.loaders import ImageLoader

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

EXIF_ORIENTATION = 0x0112


@cache
def photograph(width: int = 160, height: int = 120, seed: int = 0) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as that of photographs does; colours vary more slowly."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    frequency = np.maximum(np.hypot(y, x), 1 / max(width, height))

    def field(power: float) -> np.ndarray[Any, Any]:
        spectrum = np.fft.fft2(rng.standard_normal((height, width))) / frequency**power
        values = np.fft.ifft2(spectrum).real
        return (values - values.mean()) / values.std()

    luma, red, blue = field(1.6), field(2.2), field(2.2)
    rgb = np.stack([luma + 0.6 * red, luma - 0.3 * red - 0.2 * blue, luma + 0.7 * blue], axis=-1)
    return Image.fromarray((128 + 45 * rgb).clip(0, 255).astype(np.uint8))


@cache
def sharp(width: int = 400, height: int = 300, seed: int = 0) -> Image.Image:
    """Discs of any colour, with hard edges, in front of a photograph: what reducing twice harms most."""
    pixels = np.asarray(photograph(width, height, seed)).copy()
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    for _ in range(60):
        middle_y, middle_x, radius = rng.integers(height), rng.integers(width), rng.integers(4, 40)
        pixels[(y - middle_y) ** 2 + (x - middle_x) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    if kind == "JPEG":
        options = {"quality": 92} | options
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def oriented(image: Image.Image, orientation: int, **options: Any) -> bytes:
    """A JPEG file of `image` as it is, that is said to be turned."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(image, exif=exif.tobytes(), **options)


def decoded(data: bytes, mode: str = "RGB") -> Image.Image:
    """By Pillow, whole and as stored."""
    return Image.open(io.BytesIO(data)).convert(mode)


def reference(image: Image.Image, box: tuple[float, float, float, float], height: int, width: int) -> Pixels:
    """Pillow's own: crop to whole pixels, then its antialiased triangle filter."""
    x, y, w, h = box
    part = image.crop((int(x), int(y), int(x + w), int(y + h)))
    return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))


def psnr(got: Pixels, wanted: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB; 99 for equal ones."""
    error = float(np.mean((got.astype(np.float64) - wanted.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@cache
def kinds(width: int = 48, height: int = 36) -> Mapping[str, bytes]:
    """A file of every kind that must be readable."""
    rgb = photograph(width, height)
    gray = rgb.convert("L")
    alpha = rgb.convert("RGBA")
    alpha.putalpha(gray)
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    files = {
        "jpeg 4:2:0": encoded(rgb, subsampling="4:2:0"),
        "jpeg 4:2:2": encoded(rgb, subsampling="4:2:2"),
        "jpeg 4:4:4": encoded(rgb, subsampling="4:4:4"),
        "jpeg 4:1:1": encoded(rgb, subsampling="4:1:1"),
        "jpeg progressive": encoded(rgb, progressive=True),
        "jpeg gray": encoded(gray),
        "jpeg rgb": encoded(rgb, keep_rgb=True),
        "jpeg cmyk": encoded(rgb.convert("CMYK")),
        "jpeg restart markers": encoded(rgb, restart_marker_blocks=2),
        "png rgb": encoded(rgb, "PNG"),
        "png gray": encoded(gray, "PNG"),
        "png palette": encoded(rgb.quantize(64), "PNG"),
        "png 16 bit": encoded(wide, "PNG"),
        "png alpha": encoded(alpha, "PNG"),
        "png gray alpha": encoded(alpha.convert("LA"), "PNG"),
        "png bits": encoded(gray.convert("1"), "PNG"),
        "webp": encoded(rgb, "WEBP", lossless=True),
        "webp lossy": encoded(rgb, "WEBP"),
        "tiff": encoded(rgb, "TIFF"),
        "tiff lzw": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "tiff 16 bit": encoded(wide, "TIFF"),
        "tiff cmyk": encoded(rgb.convert("CMYK"), "TIFF"),
        "bmp": encoded(rgb, "BMP"),
        "gif": encoded(rgb.quantize(64), "GIF"),
        "gif animated": encoded(rgb.quantize(64), "GIF", save_all=True, append_images=[gray]),
        "jpeg 2000": encoded(rgb, "JPEG2000"),
        "ppm": encoded(rgb, "PPM"),
    }
    return files


def rows(loader: ImageLoader) -> dict[str, Any]:
    """Arrays for an item of this loader, with something in them."""
    return {name: np.full(spec.shape, 7, spec.numpy_dtype) for name, spec in loader.arrays().items()}


def load(loader: ImageLoader, item: Any, seed: int | None = None) -> Any:
    """The picture's row; the item's labels are thrown away."""
    arrays = rows(loader)
    loader(item, arrays, seed)
    return arrays["image"]


def ramp(channels: int) -> np.ndarray:
    """All 256 values in every channel, shape (16, 16, channels), each channel in another order."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([np.roll(values, 7 * channel) for channel in range(channels)], axis=-1)
