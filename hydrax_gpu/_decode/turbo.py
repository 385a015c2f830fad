"""JPEG by libjpeg-turbo, and only the part of it that is needed: see `kernels/jpeg.cpp`.

The library itself is Pillow's, or the system's. Rows above the part are only parsed, rows below not even that, columns
beside it are not transformed.
"""

from __future__ import annotations

import base64
import ctypes
import os
import weakref
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, final

import numpy as np

from hydrax_gpu._decode.contract import Buffer, Bytes, Damaged, Decoded, Unsupported
from hydrax_gpu._decode.geometry import Pixels
from hydrax_gpu._decode.jpeg import Header, scan
from hydrax_gpu._kernels.host import load

__all__ = ["NAME", "Turbo", "Unavailable", "open_turbo"]

NAME = "libjpeg-turbo"

_GRAY, _RGB = 1, 2
_MCU = 32
"""Columns by which a part may grow to the left: the widest block of samples that is decoded together."""

_LEFT, _RIGHT = 1, 2
"""Columns that are decoded beside the part, so that what chroma is interpolated from is there at its border, too."""

_TEST_PICTURE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNS"
    "Mj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T0//wAARCAAwAEADASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAAQGBQf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAGgEBAAMA"
    "AwAAAAAAAAAAAAAAAAUGBwECBP/EABkRAQADAQEAAAAAAAAAAAAAAAAVoeFiY//aAAwDAQACEQMRAD8A4YDwrgAAvAcMsAAQCYT8J3Wr"
    "nO+d4pEwQndaTvneOwN2KbI83iDiu61hBuwkebwiu615YA1B0AAepgMcTQAD/9k="
)
_TEST_COLORS = ((200, 30, 40), (20, 160, 60), (30, 60, 210), (230, 220, 40))
"""A picture of 64 × 48 pixels and the colours of its quarters."""


class Unavailable(Exception):
    """There is no libjpeg-turbo that can be used; the text says why."""


@final
class _Library:
    """The reader's functions, bound to a libjpeg-turbo."""

    def __init__(self, host: str) -> None:
        library = load(host)
        pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
        self.bind = library.function("hx_jpeg_load")
        self.new = library.function("hx_jpeg_new")
        self.new.restype = pointer
        self.free = library.function("hx_jpeg_free")
        self.free.argtypes = (pointer,)
        self.free.restype = None
        self.message = library.function("hx_jpeg_message")
        self.message.argtypes = (pointer,)
        self.message.restype = ctypes.c_char_p
        self.scan = library.function("hx_jpeg_scan")
        self.scan.argtypes = (pointer, long, pointer)
        self.decode = library.function("hx_jpeg_decode")
        self.decode.argtypes = (
            *(pointer, pointer, ctypes.c_ulong, integer, integer, pointer),
            *(pointer, pointer, long, long),
        )


@cache
def open_turbo(host: str) -> Any:
    """Finds a libjpeg-turbo for the host library in the file `host`, tries it, and remembers it for this process.

    Raises:
        Unavailable: there is none.
    """
    library = _Library(host)
    reasons: list[str] = []
    for path in _candidates():
        status = library.bind(os.fsencode(path))
        if status:
            reasons.append(
                f"{path}: {('', 'cannot be opened', 'is no libjpeg-turbo', 'has an unknown interface')[status]}"
            )
            continue
        if _works(library):
            return library
        reasons.append(f"{path}: does not decode a known picture as it should")
    raise Unavailable(f"no libjpeg-turbo was found ({'; '.join(reasons)})")


def _candidates() -> Iterator[str]:
    # Pillow's wheels have it in a folder beside the package; its name has a part that changes with each build.
    spec = find_spec("PIL")
    for package in (spec.submodule_search_locations or ()) if spec is not None else ():
        for folder in (os.path.join(os.path.dirname(package), "pillow.libs"), os.path.join(package, ".libs")):
            if os.path.isdir(folder):
                yield from sorted(
                    os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("libjpeg")
                )
    yield from ("libjpeg.so.62", "libjpeg.so.8")


def _works(library: _Library) -> bool:
    data = np.frombuffer(_TEST_PICTURE, np.uint8)
    header = scan(_TEST_PICTURE)
    assert header is not None
    try:
        turbo = Turbo(library, Buffer())
        whole = turbo.decode(data, header, Pixels(0, 0, 64, 48), 8, gray=False).pixels.astype(int)
        part = turbo.decode(data, header, Pixels(37, 29, 20, 10), 8, gray=False)
        same = bool((part.pixels[:, 37 - part.x : 57 - part.x, :3] == whole[29:39, 37:57, :3]).all())
        small = turbo.decode(data, header, Pixels(0, 0, 32, 24), 4, gray=False).pixels.astype(int)
    except (Damaged, Unsupported, MemoryError):
        return False
    centres = [(12, 16), (12, 48), (36, 16), (36, 48)]
    near = all(
        abs(whole[y, x, :3] - color).max() <= 8 and abs(small[y // 2, x // 2, :3] - color).max() <= 8
        for (y, x), color in zip(centres, _TEST_COLORS, strict=True)
    )
    return near and same


@final
class Turbo:
    """A decompressor.

    Args:
        library: what `open_turbo` returned.
        buffer: where pixels go.

    Raises:
        MemoryError: there is none for it.
    """

    name = NAME
    scales = True

    def __init__(self, library: Any, buffer: Buffer) -> None:
        self._library: _Library = library
        self._buffer = buffer
        self._reader: int | None = library.new()
        if self._reader is None:
            raise MemoryError("no memory for a JPEG decompressor")
        weakref.finalize(self, library.free, self._reader).atexit = False
        self._box = (ctypes.c_int * 4)()
        self._size = (ctypes.c_int * 2)()
        self._found = (ctypes.c_int * 10)()
        self._box_at, self._size_at = ctypes.addressof(self._box), ctypes.addressof(self._size)
        self._found_at = ctypes.addressof(self._found)

    @property
    def reader(self) -> int:
        """The decompressor's address, while this object lives."""
        assert self._reader is not None
        return self._reader

    def scan(self, data: Bytes) -> Header | None:
        """As `hydrax_gpu._decode.jpeg.scan`."""
        if self._library.scan(data.__array_interface__["data"][0], data.size, self._found_at):
            return None
        return Header(*self._found)

    def decode(self, data: Bytes, header: Header, wanted: Pixels, eighths: int, *, gray: bool) -> Decoded:
        """See `JpegDecoder`."""
        if header.components not in (1, 3):
            raise Unsupported(f"{header.components} components (CMYK or YCCK)")
        columns = -(-header.width * eighths // 8)
        x = max(0, wanted.x - _LEFT)
        right = min(columns, wanted.x + wanted.width + _RIGHT)
        pixel = 1 if gray else 3
        pixels = self._buffer.take(wanted.height, right - x + _MCU, pixel)
        box = self._box
        box[:] = (x, wanted.y, right - x, wanted.height)
        self._size[:] = (header.width, header.height)
        status = self._library.decode(
            self._reader, data.__array_interface__["data"][0], data.size, eighths, _GRAY if gray else _RGB,
            self._box_at, self._size_at, pixels.__array_interface__["data"][0], pixels.strides[0],
            pixels.size,
        )  # fmt: skip
        if status:
            message = self._library.message(self._reader).decode(errors="replace") or "its frame headers differ"
            raise Unsupported(message) if status == 2 else Damaged(message)
        return Decoded(pixels[:, : box[2]], box[0], wanted.y)
