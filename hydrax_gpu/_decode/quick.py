"""The common case from end to end in one call: see `kernels/quick.cpp`. The chain does all the rest."""

from __future__ import annotations

import ctypes
import os
from typing import Any, NamedTuple, final

import numpy as np

from hydrax_gpu._decode.chain import REDUCE
from hydrax_gpu._decode.contract import Bytes
from hydrax_gpu._decode.draws import PURPOSE
from hydrax_gpu._decode.turbo import Turbo
from hydrax_gpu._kernels.host import Library
from hydrax_gpu._kernels.resize_crop_flip_normalize import Box

__all__ = ["CENTER", "RANDOM", "WHOLE", "Quick", "Request"]

WHOLE, RANDOM, CENTER = 0, 1, 2
"""Kinds of crop."""

_FILE = 1 << 20
_PIXELS = 1 << 22
"""Bytes of the largest file and of the largest part that are dealt with here."""


class Request(ctypes.Structure):
    """`Request` of the source."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("file", ctypes.c_void_p),
        ("file_capacity", ctypes.c_int64),
        ("pixels", ctypes.c_void_p),
        ("pixel_capacity", ctypes.c_int64),
        ("max_file_bytes", ctypes.c_int64),
        ("max_pixels", ctypes.c_int64),
        ("scale", ctypes.c_double * 2),
        ("ratio", ctypes.c_double * 2),
        ("flip_chance", ctypes.c_double),
        ("reduce", ctypes.c_double),
        ("seeded", ctypes.c_int32),
        ("crop", ctypes.c_int32),
        ("resize", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("gray", ctypes.c_int32),
        ("purpose", ctypes.c_uint32),
        ("flip", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("box", ctypes.c_int32 * 4),
        ("reserved", ctypes.c_int32),
    )


class Found(NamedTuple):
    """A part that was decoded, the box in it, and whether the picture is mirrored."""

    pixels: Bytes
    box: Box
    flip: bool


@final
class Quick:
    """Ordinary JPEG pictures for results of one size. An instance belongs to one thread.

    Args:
        library: the host library.
        turbo: the decoder to use.
        height: of the result.
        width: of the result.
        gray: whether pixels are gray.
        flip: chance that a picture with a seed is mirrored.
        max_file_bytes: size of the largest file.
        max_pixels: width times height of the largest picture.
    """

    def __init__(
        self,
        library: Library,
        turbo: Turbo,
        *,
        height: int,
        width: int,
        gray: bool,
        flip: float,
        max_file_bytes: int,
        max_pixels: int,
    ) -> None:
        self._call: Any = library.function("hx_jpeg_quick")
        self._call.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._turbo = turbo  # which owns the reader
        self._reader = turbo.reader
        self._file, self._pixels = np.empty(_FILE, np.uint8), np.empty(_PIXELS, np.uint8)
        self._pixel = 1 if gray else 3
        self._request = Request(
            file=self._file.ctypes.data, file_capacity=_FILE, pixels=self._pixels.ctypes.data, pixel_capacity=_PIXELS,
            max_file_bytes=max_file_bytes, max_pixels=max_pixels, flip_chance=flip, reduce=REDUCE, height=height,
            width=width, gray=gray, purpose=PURPOSE,
        )  # fmt: skip
        self._address = ctypes.addressof(self._request)

    def load(
        self,
        source: Any,
        seed: int | None,
        crop: int,
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        ratio: tuple[float, float] = (1.0, 1.0),
        resize: int = 0,
    ) -> Found | None:
        """The part of a picture that its crop needs, valid until the next call; None if it is not ordinary.

        Args:
            source: a path, or the bytes of a file.
            seed: of the item; None for no flip.
            crop: `WHOLE`, `RANDOM` or `CENTER`.
            scale: of a random crop.
            ratio: of a random crop.
            resize: of a crop in the middle: what the shorter side is resized to.
        """
        request = self._request
        if isinstance(source, str):
            path = os.fsencode(source)
            if b"\0" in path:
                return None
            request.path = path
        elif isinstance(source, bytes):
            data = np.frombuffer(source, np.uint8)
            request.path = None
            request.data, request.size = data.__array_interface__["data"][0], data.size
        else:
            return None
        if seed is not None:
            request.seed = seed
        request.seeded, request.crop, request.resize = seed is not None, crop, resize
        request.scale[:], request.ratio[:] = scale, ratio
        if self._call(self._reader, self._address):
            return None
        rows, columns, stride = request.rows, request.columns, request.stride
        width = stride // self._pixel
        pixels = self._pixels[: rows * stride].reshape(rows, width, self._pixel)[:, :columns]
        return Found(pixels, Box(*request.box), bool(request.flip))
