"""A compressed file in a slot, with what a device needs to know to make a row of a batch of it.

Workers, which see no device, read the file and its header and draw the crop; the device decodes the part of the picture
that the crop touches, and resizes it. What lies in a slot for one row, at a multiple of `ALIGNMENT`:

    Record (64 bytes) | the file's bytes

A row without a file (`PIXELS`) was decoded by the worker, into the array itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.resize_crop_flip_normalize import Box, Item, Layout, Turn
from hydrax_gpu._spec import Layout as BatchLayout

__all__ = ["FILE", "HEAD", "PIXELS", "Encoded", "EncodingLoader", "PictureRows", "Record", "with_encoded", "write"]

HEAD = 64
"""Bytes before the file."""

PIXELS, FILE = 0, 1
"""States of a row: decoded by the worker, or a file for the device."""


class Record(ctypes.Structure):
    """What stands before a file.

    `part` is the needed part of the stored picture (x, y, width, height), in pixels; `box` what becomes the row, in
    eighths of a pixel from the part's origin. Both are those of the picture as it is stored, which `swap`, `mirror_x`
    and `mirror_y` turn, see `Turn`.
    """

    _fields_ = (
        ("state", ctypes.c_int32),
        ("swap", ctypes.c_uint8),
        ("mirror_x", ctypes.c_uint8),
        ("mirror_y", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
        ("nbytes", ctypes.c_int64),
        ("part", ctypes.c_int32 * 4),
        ("box", ctypes.c_int32 * 4),
    )


assert ctypes.sizeof(Record) <= HEAD


@dataclass(frozen=True, slots=True)
class PictureRows:
    """What decoded rows are: the fixed arguments of `resize_crop_flip_normalize`.

    Attributes:
        height: rows of the upright picture, in pixels.
        width: its columns.
        channels: 3 for RGB, 1 for gray.
        layout: order of the axes.
        dtype: of the rows, one of the kernel's `OUTPUTS`.
        scale: for each channel what a value of 0 to 255 is multiplied by; None for uint8 as it is.
        bias: what is added then.
    """

    height: int
    width: int
    channels: int
    layout: Layout
    dtype: np.dtype[Any]
    scale: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a row."""
        if self.layout == "HWC":
            return self.height, self.width, self.channels
        return self.channels, self.height, self.width


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a loader says of an array that it can leave to a device.

    Attributes:
        nbytes: of the largest file that is handed over.
        rows: what the device is to make of it.
    """

    nbytes: int
    rows: PictureRows


class EncodingLoader(Protocol):
    """A loader function that can leave the decoding of some of its arrays to a device."""

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        """Those arrays by name; empty when none is to be left."""
        ...

    def encode(
        self,
        item: Any,
        arrays: Mapping[str, npt.NDArray[Any]],
        encoded: Mapping[str, npt.NDArray[np.uint8]],
        seed: int | None,
        /,
    ) -> dict[str, Any] | None:
        """As the loader function, but for the arrays in `encoded`.

        Of each of those it first `write`s that there is no file, and then either the file, or the array's row itself.
        """
        ...


def with_encoded(layout: BatchLayout, encoded: Mapping[str, Encoded], devices: int = 1) -> BatchLayout:
    """The layout with room for files, for those arrays that are declared in it as the loader knows them.

    Each of the devices that decode parts of the same batch has its own table of items there.
    """
    for array in layout.wire:
        each = encoded.get(array.name)
        if each is not None and array.item_shape == each.rows.shape and array.numpy_dtype == each.rows.dtype:
            items = devices * layout.rows * ctypes.sizeof(Item)
            layout = layout.with_encoded(array.name, HEAD + each.nbytes, items, each.rows)
    return layout


def write(
    row: npt.NDArray[np.uint8],
    data: npt.NDArray[np.uint8] | None,
    part: tuple[int, int, int, int] = (0, 0, 0, 0),
    box: Box | tuple[int, int, int, int] = (0, 0, 0, 0),
    turn: Turn = Turn(),  # noqa: B008
) -> None:
    """Puts a file into a row's region, or, with None, that there is none.

    Args:
        row: the region, uint8, at least `HEAD + len(data)` bytes.
        data: the file's bytes, shape `(size,)`.
        part: see `Record`.
        box: see `Record`.
        turn: see `Record`.
    """
    record = Record.from_buffer(row)  # pyright: ignore[reportArgumentType]
    if data is None:
        record.state = PIXELS
        return
    row[HEAD : HEAD + data.size] = data
    record.nbytes = data.size
    record.part[:], record.box[:] = part, box
    record.swap, record.mirror_x, record.mirror_y = turn
    record.state = FILE
