"""Which decoder reads a picture: the first that can, and it is counted when that is not the first of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

from hydrax_gpu._decode import jpeg, simple, turbo
from hydrax_gpu._decode import pillow as pillow_module
from hydrax_gpu._decode.contract import Buffer, Bytes, Damaged, Decoded, JpegDecoder, Unsupported
from hydrax_gpu._decode.geometry import eighths_for, reduced, stored_box
from hydrax_gpu._kernels.resize_crop_flip_normalize import EIGHTHS, Box

__all__ = ["DECODERS", "MAX_SCANS", "REDUCE", "Chain", "Part", "Picture"]

DECODERS = (turbo.NAME, simple.NAME, pillow_module.NAME)
"""Decoders of JPEG pictures, in the order in which they are asked."""

MAX_SCANS = 100
"""Scans of a progressive picture. Each is a pass over all of it, however few bytes it has; encoders write about 10."""

REDUCE = 1.75
"""A picture is decoded at half of its size only if the box is still this many times as large as the result."""


class Part(NamedTuple):
    """A box in decoded pixels, to be resized from there."""

    pixels: Bytes
    box: Box


@final
class Picture:
    """A picture whose header was read.

    Attributes:
        width: of the stored picture, in pixels.
        height: of the stored picture, in pixels.
        orientation: its EXIF orientation, 1 to 8.
    """

    def __init__(self, data: Bytes, header: jpeg.Header | None, opened: pillow_module.Opened | None) -> None:
        self.data, self.header, self.opened = data, header, opened
        self.width: int
        self.height: int
        if header is not None:
            self.width, self.height, self.orientation = header.width, header.height, header.orientation
        else:
            assert opened is not None
            self.width, self.height, self.orientation = opened.width, opened.height, opened.orientation


@final
class Chain:
    """Decoders of one thread.

    Args:
        decoders: names of JPEG decoders, in the order in which they are asked.
        host: file of the host library; None where there is none.
        background: see `Pillow`.
        srgb: see `Pillow`.
        gray: whether pixels are gray.
        count: is told what did not go as it should, as a line of text, each time that it happens.

    Raises:
        ImportError: none of the decoders is installed.
    """

    def __init__(
        self,
        decoders: tuple[str, ...],
        host: str | None,
        background: tuple[int, int, int],
        *,
        srgb: bool,
        gray: bool,
        count: Callable[[str], None],
    ) -> None:
        self._gray, self._srgb, self._count = gray, srgb, count
        self._pillow: pillow_module.Pillow | None = None
        self._background = background
        self._turbo: turbo.Turbo | None = None
        self._decoders: list[JpegDecoder] = []
        missing: list[str] = []
        self._lacking: tuple[str, ...] = ()  # decoders that should come before the first that there is
        buffer = Buffer()
        for name in decoders:
            try:
                decoder = self._new(name, host, buffer)
            except (ImportError, turbo.Unavailable) as error:
                missing.append(f"{name} cannot be used ({error})")
                continue
            if not self._decoders:
                self._lacking = tuple(missing)
            self._decoders.append(decoder)
        if not self._decoders:
            raise ImportError(
                f"no JPEG decoder is there: {', '.join(missing)}. Install Pillow, for example by "
                "pip install 'hydrax-gpu[image]'"
            )

    def _new(self, name: str, host: str | None, buffer: Buffer) -> JpegDecoder:
        if name == turbo.NAME:
            if host is None:
                raise turbo.Unavailable("its reader is in the kernels' host library, which was not built")
            self._turbo = turbo.Turbo(turbo.open_turbo(host), buffer)
            return self._turbo
        return simple.Simple(buffer) if name == simple.NAME else self._all_formats()

    @property
    def turbo(self) -> turbo.Turbo | None:
        """The decoder by libjpeg-turbo, if it is the first to be asked and there are no profiles to be honoured."""
        return self._turbo if self._decoders[0] is self._turbo and not self._srgb else None

    def _all_formats(self) -> pillow_module.Pillow:
        if self._pillow is None:
            self._pillow = pillow_module.Pillow(self._background, srgb=self._srgb)
        return self._pillow

    def open(self, data: Bytes) -> Picture:
        """Reads the header of a picture of any format.

        Raises:
            Damaged: it is no picture, or damaged.
            ImportError: it is not JPEG, and Pillow is not installed.
        """
        if data.size >= 3 and data[0] == 0xFF and data[1] == 0xD8 and data[2] == 0xFF:
            header = self._turbo.scan(data) if self._turbo is not None else jpeg.scan(data.data)
            if header is None:
                raise Damaged("it begins like a JPEG file, and ends or breaks off before its first scan")
            if not header.width or not header.height:
                raise Damaged(f"its header says {header.width} x {header.height} pixels")
            if not header.complete:
                raise Damaged("it is truncated: there is no end marker (EOI) behind its first scan")
            if header.scans > MAX_SCANS:
                raise Damaged(f"it has {header.scans} scans, more than {MAX_SCANS}: what would decode for hours")
            return Picture(data, header, None)
        return Picture(data, None, self._all_formats().open(data))

    def decode(self, picture: Picture, box: Box, height: int, width: int) -> Part:
        """The pixels that a box of the upright picture needs.

        Args:
            picture: what `open` returned.
            box: in the upright picture.
            height: pixels of the result.
            width: pixels of the result.

        Raises:
            Damaged: the picture is damaged, or no decoder reads such.
        """
        stored = stored_box(box, picture.orientation, picture.width, picture.height)
        header = picture.header
        if header is None:
            assert picture.opened is not None
            part, wanted = reduced(stored, 8, picture.width, picture.height)
            try:
                return _part(self._all_formats().pixels(picture.opened, wanted, gray=self._gray), part)
            except Unsupported as error:
                raise Damaged(str(error)) from error
        if picture.orientation > 4:
            height, width = width, height
        fewest = eighths_for(stored, height, width, REDUCE)
        refusals = list(self._lacking)
        decoders = self._decoders
        if self._srgb and header.profile:
            decoders, refusals = [self._all_formats()], []
        for decoder in decoders:
            eighths = fewest if decoder.scales else 8
            part, wanted = reduced(stored, eighths, header.width, header.height)
            try:
                decoded = decoder.decode(picture.data, header, wanted, eighths, gray=self._gray)
            except Unsupported as error:
                refusals.append(f"{decoder.name} refused ({error})")
                continue
            if refusals:
                self._count(f"{', '.join(refusals)}, {decoder.name} decoded")
            return _part(decoded, part)
        raise Damaged(f"no decoder reads it: {', '.join(refusals)}")


def _part(decoded: Decoded, box: Box) -> Part:
    x, y = EIGHTHS * decoded.x, EIGHTHS * decoded.y
    return Part(decoded.pixels, Box(box.x - x, box.y - y, box.width, box.height))
