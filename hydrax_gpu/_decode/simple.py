"""JPEG by the simplejpeg package: libjpeg-turbo too, but always the whole picture."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from hydrax_gpu._decode.contract import Buffer, Bytes, Damaged, Decoded, Unsupported
from hydrax_gpu._decode.geometry import Pixels
from hydrax_gpu._decode.jpeg import Header

__all__ = ["NAME", "Simple"]

NAME = "simplejpeg"


@final
class Simple:
    """The decoder.

    Args:
        buffer: where pixels go.

    Raises:
        ImportError: simplejpeg is not installed.
    """

    name = NAME
    scales = False

    def __init__(self, buffer: Buffer) -> None:
        import simplejpeg  # pyright: ignore

        self._decode: Any = simplejpeg.decode_jpeg  # pyright: ignore
        self._buffer = buffer

    def decode(self, data: Bytes, header: Header, wanted: Pixels, eighths: int, *, gray: bool) -> Decoded:
        """See `JpegDecoder`."""
        if header.components not in (1, 3):
            raise Unsupported(f"{header.components} components (CMYK or YCCK)")
        if header.precision != 8:
            raise Unsupported(f"samples of {header.precision} bits")
        pixels = self._buffer.take(header.height, header.width, 1 if gray else 3)
        try:
            shown = self._decode(data, "GRAY" if gray else "RGB", buffer=pixels)
        except ValueError as error:
            text = str(error)
            raise Unsupported(text) if "nsupported" in text else Damaged(text) from error
        if shown.shape[:2] != pixels.shape[:2]:
            raise Damaged("its frame headers differ")
        return Decoded(np.asarray(shown, np.uint8).reshape(pixels.shape), 0, 0)
