"""Opening pictures with Pillow, in sRGB whatever their colour profile."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from io import BytesIO
from typing import IO, Final

import numpy as np
from PIL import Image, ImageCms

_log = logging.getLogger("hydrax_gpu")

_HIGH_RESOLUTION = int(ImageCms.Flags.HIGHRESPRECALC)
_BLACK_POINT = int(ImageCms.Flags.BLACKPOINTCOMPENSATION)

CONVERT_PERCEPTUAL: Final[tuple[ImageCms.Intent, int]] = (ImageCms.Intent.PERCEPTUAL, _HIGH_RESOLUTION)
"""For `open_srgb`: perceptual rendering intent, with tables of high resolution."""

CONVERT_RELATIVE: Final[tuple[ImageCms.Intent, int]] = (
    ImageCms.Intent.RELATIVE_COLORIMETRIC,
    _HIGH_RESOLUTION | _BLACK_POINT,
)
"""For `open_srgb`: relative colorimetric intent with black point compensation, with tables of high resolution."""


def set_max_image_pixels(threshold: int | None) -> None:
    """Refuse pictures with more pixels than this: what a small file says to hold may not fit into memory.

    This sets `PIL.Image.MAX_IMAGE_PIXELS`, which is one setting for everything in this process that opens pictures with
    Pillow. A worker process has one of its own: call this where the worker comes by, at the top of the module that
    defines the loader function, or in the loader function. Pillow warns from half the number on.

    Args:
        threshold: Number of pixels from which on `open_srgb` raises `PIL.Image.DecompressionBombError`; None for no
            limit. Pillow keeps the half of it, rounded up, so that an odd number counts as the next even one.

    Raises:
        ValueError: If `threshold` is not above 0.
    """
    if threshold is not None and threshold < 1:
        raise ValueError(f"threshold={threshold}: wanted a number of pixels above 0, or None for no limit")
    Image.MAX_IMAGE_PIXELS = None if threshold is None else (threshold + 1) // 2


def open_srgb(
    fp: str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview,
    *,
    mode: str = "RGB",
    convert: tuple[ImageCms.Intent, int] = CONVERT_RELATIVE,
    formats: Sequence[str] | None = None,
) -> Image.Image:
    """Open a picture, decode it, and convert it to sRGB if it has a colour profile that says what it is now.

    Without a profile it is taken for sRGB. One with a profile that cannot be used (it is broken, or made for another
    kind of picture) is taken for sRGB too, and a warning is logged. Gray of 16 bits is scaled to 8. Alpha is dropped
    when `mode` has none. EXIF orientation is not applied: see `PIL.ImageOps.exif_transpose`.

    Args:
        fp: A path, a file that is open for reading bytes, or the bytes of a file.
        mode: Pillow's name of what to return: `"RGB"`, `"RGBA"`, `"RGBa"` (premultiplied), or `"L"`.
        convert: Rendering intent and flags of the conversion (`PIL.ImageCms`), `CONVERT_RELATIVE` or
            `CONVERT_PERCEPTUAL`. Where the profile does not have the intent, its default one is taken.
        formats: Names of the formats to try (`["JPEG", "PNG"]`), all if None.

    Returns:
        The picture in `mode`, decoded; the file is closed if it was opened here.

    Raises:
        OSError: If it cannot be read, is no picture (`PIL.UnidentifiedImageError`) or ends too early.
        PIL.Image.DecompressionBombError: If it has too many pixels, see `set_max_image_pixels`.
    """
    # bytes are a path to Pillow, and a file's content to everyone else
    source = BytesIO(fp) if isinstance(fp, bytes | bytearray | memoryview) else fp
    # the pixels are decoded here, where a picture that ends too early is noticed, and before the file is closed
    with Image.open(source, formats=None if formats is None else list(formats)) as opened:
        opened.load()
        profile = opened.info.get("icc_profile")
        image = _eight_bits(opened)
        if profile:
            image = _to_srgb(image, profile, convert, alpha=mode[-1] in "Aa")
        if image.mode == mode:
            return image
        # Pillow premultiplies RGBA alone
        return (image.convert("RGBA") if mode == "RGBa" else image).convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as gray of 8: Pillow's own conversion makes everything above 255 white."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
    # the nearest step: 65535 / 255 = 257
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes, convert: tuple[ImageCms.Intent, int], alpha: bool) -> Image.Image:
    """The picture in sRGB, `RGB` or with `alpha` and if it has one `RGBA`; as it was if its profile is of no use."""
    colours, opacity = _split(image)
    try:
        result = _transform(profile, colours.mode, *convert).apply(colours)
    except (ImageCms.PyCMSError, OSError, ValueError) as problem:
        _warn_of_profile(f"{type(problem).__name__}: {problem}", colours.mode)
        return image
    if alpha and opacity is not None:
        result.putalpha(opacity)
    return result


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in a mode that colour profiles know, and alpha or None."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    if image.mode in ("RGBA", "LA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    # what a JPEG is in when it is not decoded to RGB; its profile is about RGB all the same
    if image.mode in ("YCbCr", "RGBX", "HSV"):
        return image.convert("RGB"), None
    return image, None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str, intent: ImageCms.Intent, flags: int) -> ImageCms.ImageCmsTransform:
    """The conversion from a profile, which takes milliseconds to set up, and most files of a data set share theirs."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    # 1 is yes and -1 is no
    if ImageCms.isIntentSupported(source, intent, ImageCms.Direction.INPUT) != 1:
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
        if intent != ImageCms.Intent.RELATIVE_COLORIMETRIC:
            flags &= ~_BLACK_POINT
    return ImageCms.buildTransform(source, _srgb(), mode, "RGB", intent, ImageCms.Flags(flags))


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    # Pillow has no types for what it returns
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))  # pyright: ignore


@cache
def _warn_of_profile(problem: str, mode: str) -> None:
    """Once for each problem: a data set may have a thousand such files."""
    _log.warning(
        "a picture of mode %s has a colour profile that cannot be used, and is taken for sRGB: %s", mode, problem
    )
