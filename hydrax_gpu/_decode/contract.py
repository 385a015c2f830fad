"""What decoders are given and what they answer."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._decode.geometry import Pixels
from hydrax_gpu._decode.jpeg import Header

__all__ = ["Buffer", "Bytes", "Damaged", "Decoded", "JpegDecoder", "Unsupported"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

_KEEP = 1 << 26
"""Bytes of a buffer that is kept: one huge picture must not hold its memory for ever."""


class Damaged(Exception):
    """The picture is damaged: no other decoder is asked, since one that does not see it would make up pixels."""


class Unsupported(Exception):
    """This decoder does not read such pictures; another may."""


class Decoded(NamedTuple):
    """Pixels, uint8 of shape `(rows, columns, bytes of a pixel)`: 1 byte gray, 3 RGB.

    They lie at `(x, y)` of the picture that was decoded.
    """

    pixels: Bytes
    x: int
    y: int


class JpegDecoder(Protocol):
    """Reads JPEG pictures. An instance belongs to one thread."""

    name: str
    """What the report calls it."""

    scales: bool
    """Whether it can decode a picture at 1, 2 or 4 eighths of its size."""

    def decode(self, data: Bytes, header: Header, wanted: Pixels, eighths: int, *, gray: bool) -> Decoded:
        """At least the `wanted` pixels of the picture at `eighths` of its size. They are valid until the next call.

        Raises:
            Damaged, Unsupported: it cannot.
        """
        ...


@final
class Buffer:
    """Memory for decoded pixels, used again and again. An instance belongs to one thread."""

    def __init__(self) -> None:
        self._memory: Bytes = np.empty(0, np.uint8)

    def take(self, rows: int, columns: int, pixel: int) -> Bytes:
        """Uint8 of shape `(rows, columns, pixel)`, whatever is in it; the one before is gone."""
        size = rows * columns * pixel
        if size > self._memory.size or self._memory.size > _KEEP:
            self._memory = np.empty(max(1 << 20, size), np.uint8)
        return self._memory[:size].reshape(rows, columns, pixel)
