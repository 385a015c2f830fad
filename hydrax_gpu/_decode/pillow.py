"""Every format by Pillow, whole pictures. The one decoder for all but JPEG, and the last one for that.

What becomes of pictures that are not 8-bit RGB or gray:

- alpha: laid over the background colour, `(alpha colour + (255 - alpha) background) / 255`, rounded as Pillow does it;
- 16-bit gray: `(255 v + 32767) // 65535`; 16-bit colour has its upper byte taken by Pillow;
- palettes, CMYK, YCbCr, LAB and bits: as Pillow converts them; CMYK without a profile is `(255 - C) (255 - K) / 255`;
- gray from colour: `(299 R + 587 G + 114 B) / 1000`, which is a JPEG picture's own luma;
- 32-bit integers and floats have no range that is known to be theirs: an error.
"""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from typing import Any, final

import numpy as np

from hydrax_gpu._decode.contract import Bytes, Damaged, Decoded, Unsupported
from hydrax_gpu._decode.geometry import Pixels
from hydrax_gpu._decode.jpeg import Header

__all__ = ["FORMATS", "NAME", "Opened", "Pillow"]

NAME = "Pillow"

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")
"""What Pillow is let read. It knows many more formats, some of which start other programs."""

_MODULES = ("Jpeg", "Png", "WebP", "Tiff", "Bmp", "Gif", "Jpeg2K", "Ppm")
_ORIENTATION = 0x0112
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")


@final
class Opened:
    """A picture whose header was read, and whose pixels were not.

    Attributes:
        width: of the stored picture, in pixels.
        height: of the stored picture, in pixels.
        orientation: its EXIF orientation, 1 to 8.
    """

    def __init__(self, image: Any) -> None:
        self.image = image
        self.width, self.height = image.size
        orientation = 1
        if image.format != "TIFF":  # whose orientation Pillow sees to itself
            orientation = image.getexif().get(_ORIENTATION, 1)
        self.orientation: int = orientation if orientation in range(1, 9) else 1


@final
class Pillow:
    """The decoder.

    Args:
        background: what is behind a picture with alpha, RGB, 0 to 255.
        srgb: whether a picture with an ICC profile is converted to sRGB.

    Raises:
        ImportError: Pillow is not installed.
    """

    name = NAME
    scales = False

    def __init__(self, background: tuple[int, int, int] = (0, 0, 0), *, srgb: bool = False) -> None:
        from PIL import Image

        self._module: Any = Image
        # the modules of these formats alone: Image.init() would import all there are
        for name in _MODULES:
            import_module(f"PIL.{name}ImagePlugin")
        self._formats = tuple(name for name in FORMATS if name in Image.OPEN)
        self._background = background
        self._srgb = srgb

    def open(self, data: Bytes) -> Opened:
        """Reads the header.

        Raises:
            Damaged: it is no picture of the `FORMATS`, or a damaged one.
        """
        try:
            return Opened(self._module.open(BytesIO(data.tobytes()), formats=self._formats))
        except self._module.UnidentifiedImageError:
            first = data[:16].tobytes()
            raise Damaged(f"it is no picture of a known format; it begins with {first!r}") from None
        except self._module.DecompressionBombError as error:
            raise Damaged(f"{error}; Pillow's own limit is PIL.Image.MAX_IMAGE_PIXELS") from error
        except Exception as error:
            raise Damaged(_text(error)) from error

    def pixels(self, opened: Opened, wanted: Pixels, *, gray: bool) -> Decoded:
        """The wanted pixels of a picture.

        Raises:
            Damaged, Unsupported: it is damaged, or of a kind that is not defined here.
        """
        image = opened.image
        try:
            image.load()
            if image.size != (opened.width, opened.height):
                raise Damaged(f"its size is {image.size}, and its header says {(opened.width, opened.height)}")
            converted = self._converted(image, wanted, gray=gray)
            data = converted.tobytes()
        except (Damaged, Unsupported, MemoryError):
            raise
        except Exception as error:
            raise Damaged(_text(error)) from error
        finally:
            image.close()
        pixels = np.frombuffer(data, np.uint8).reshape(wanted.height, wanted.width, 1 if gray else 3)
        return Decoded(pixels, wanted.x, wanted.y)

    def decode(self, data: Bytes, header: Header, wanted: Pixels, eighths: int, *, gray: bool) -> Decoded:
        """See `JpegDecoder`."""
        opened = self.open(data)
        if (opened.width, opened.height) != (header.width, header.height):
            raise Damaged("its frame headers differ")
        return self.pixels(opened, wanted, gray=gray)

    def _converted(self, image: Any, wanted: Pixels, *, gray: bool) -> Any:
        part = image
        if wanted != (0, 0, *image.size):
            x, y, width, height = wanted
            part = image.crop((x, y, x + width, y + height))
        mode = "L" if gray else "RGB"
        if image.mode in _SIXTEEN or (image.mode == "I" and image.format == "PNG"):
            values = np.asarray(part).astype(np.uint32)
            return self._module.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert(mode)
        if image.mode in ("I", "F"):
            raise Unsupported(f"its samples have 32 bits (Pillow's mode {image.mode}), for which no range is defined")
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            part = part.convert("RGBA")
            behind = self._module.new("RGBA", part.size, (*self._background, 255))
            alpha, part = part, self._module.alpha_composite(behind, part).convert("RGB")
            del alpha
        profile = image.info.get("icc_profile") if self._srgb else None
        if profile:
            part = self._to_srgb(part, profile)
        return part.convert(mode)

    def _to_srgb(self, part: Any, profile: bytes) -> Any:
        cms: Any = import_module("PIL.ImageCms")
        if part.mode not in ("RGB", "L", "CMYK", "LAB"):
            part = part.convert("RGB")
        source = cms.ImageCmsProfile(BytesIO(profile))
        try:
            result = cms.profileToProfile(part, source, cms.createProfile("sRGB"), outputMode="RGB")
        except cms.PyCMSError as error:
            raise Damaged(f"its ICC profile cannot be used for mode {part.mode} ({error})") from error
        return part if result is None else result


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
