"""`resize_crop_flip_normalize`: boxes of pictures to rows of a batch; see the kernel's source for the definition."""

from __future__ import annotations

import ctypes
from typing import Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.formats import Floats, from_f32, tag
from hydrax_gpu._kernels.host import Library

__all__ = [
    "EIGHTHS",
    "OUTPUTS",
    "UPRIGHT",
    "Args",
    "Box",
    "Item",
    "Layout",
    "Resize",
    "Turn",
    "aim",
    "factors",
    "measure",
    "run_twin",
    "taps",
    "twin",
    "weights",
]

Layout: TypeAlias = Literal["HWC", "CHW"]
Bytes: TypeAlias = npt.NDArray[np.uint8]

OUTPUTS = ("uint8", "float16", "bfloat16", "float32")

EIGHTHS = 8
"""Units of a box to a pixel."""

_HEAD = 4
"""Elements of a table's entry before its weights."""

_ONE = 1 << 21
"""What the kernel's sums have a factor too much of: 2**14 of the weights along y, 2**7 of the rows between."""


class Box(NamedTuple):
    """A part of a picture, in eighths of a pixel."""

    x: int
    y: int
    width: int
    height: int


class Turn(NamedTuple):
    """How a picture is to be turned: columns are counted from the right if `mirror_x`, rows from below if `mirror_y`,
    and then rows become columns if `swap`."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False


UPRIGHT = Turn()


class Item(ctypes.Structure):
    """`Item` of the source."""

    _fields_ = (
        ("picture", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("pixel", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("box", ctypes.c_int32 * 4),
        ("flip", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("origin", ctypes.c_int64),
        ("step_y", ctypes.c_int64),
        ("step_x", ctypes.c_int64),
        ("step_c", ctypes.c_int64),
    )


class Args(ctypes.Structure):
    """`ResizeArgs` of the source."""

    _fields_ = (
        ("items", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("table_count", ctypes.c_int64),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("taps_x", ctypes.c_int32),
        ("taps_y", ctypes.c_int32),
        ("affine", ctypes.c_int32),
        ("ring", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


def taps(count: int, length: int) -> int:
    """How many pixels an output sees at most, made even, when `length` eighths of a pixel become `count` pixels."""
    unit = EIGHTHS * count
    most = (2 * max(length, unit) + unit - 1) // unit + 1
    return most + most % 2


def weights(count: int, begin: int, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The filter along one axis, for `length` eighths of a pixel from `begin` that become `count` pixels.

    Returns:
        `(pixels, weights)`, both of shape `(count, taps)`: weights sum to 2**14 along the last axis, and where a pixel
        is outside of the box its weight is 0.
    """
    outputs = np.arange(count, dtype=np.int64)[:, None]
    centre = 2 * count * begin + (2 * outputs + 1) * length
    support = 2 * max(length, EIGHTHS * count)
    low, high = begin // EIGHTHS, -(-(begin + length) // EIGHTHS)
    first = np.maximum(low, (centre - support - EIGHTHS * count) // (2 * EIGHTHS * count) + 1)
    pixels = first + np.arange(taps(count, length), dtype=np.int64)
    distance = np.abs(EIGHTHS * count * (2 * pixels + 1) - centre)
    raw = np.where(pixels < high, np.maximum(0, support - distance), 0)
    sums = np.cumsum(raw, axis=1)
    total = sums[:, -1:]
    rounded = (16384 * sums + total // 2) // total
    return pixels, np.diff(rounded, axis=1, prepend=0)


def twin(picture: Bytes, box: Box, height: int, width: int, channels: int) -> npt.NDArray[np.int32]:
    """What the kernel computes before it converts: the result times 2**21.

    Args:
        picture: shape `(rows, columns, bytes of a pixel)`; only the first `channels` bytes of a pixel matter.
        box: in the picture.
        height: rows of the result.
        width: columns of the result.
        channels: of the result.

    Returns:
        int32, shape `(height, width, channels)`.
    """
    source = picture[..., :channels].astype(np.int32)
    columns, across = weights(width, box.x, box.width)
    rows, down = weights(height, box.y, box.height)
    columns = columns.clip(max=picture.shape[1] - 1)
    rows = rows.clip(max=picture.shape[0] - 1)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    middle = np.full((bottom - top, width, channels), 64, np.int32)
    for k in range(columns.shape[1]):
        middle += across[:, k, None].astype(np.int32) * source[top:bottom, columns[:, k]]
    middle >>= 7
    result = np.zeros((height, width, channels), np.int32)
    for k in range(rows.shape[1]):
        result += down[:, k, None, None].astype(np.int32) * middle[rows[:, k] - top]
    return result


def aim(item: Item, height: int, width: int, channels: int, layout: Layout, turn: Turn) -> tuple[int, int]:
    """Lets an item write a row from the beginning of the output on.

    Args:
        item: whose `flip`, `origin` and steps are set.
        height: rows of the upright result.
        width: columns of the upright result.
        channels: of the result.
        layout: order of the result's axes.
        turn: from the picture to the result.

    Returns:
        Rows and columns of the result before it is turned, which the kernel is to be told.
    """
    swap, mirror_x, mirror_y = turn
    if layout == "HWC":
        down, right, next_channel = width * channels, channels, 1
    else:
        down, right, next_channel = width, 1, height * width
    if swap:
        height, width = width, height
    step_y, step_x = (right, down) if swap else (down, right)
    item.flip = mirror_x
    item.origin = (height - 1) * step_y if mirror_y else 0
    item.step_y = -step_y if mirror_y else step_y
    item.step_x, item.step_c = step_x, next_channel
    return height, width


def measure(args: Args, height: int, width: int, taps_y: int, taps_x: int) -> None:
    """Sets sizes, taps and the size of a row's table: `table_count`, in int16."""
    args.height, args.width, args.taps_y, args.taps_x = height, width, taps_y, taps_x
    args.table_count = width * (taps_x + _HEAD) + height * (taps_y + _HEAD)


def factors(
    channels: int, dtype: np.dtype[Any], scale: Any = None, bias: Any = None
) -> tuple[bool, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """`affine`, `scale` and `bias` of the arguments, for a scale and a bias of values of 0 to 255, or None."""
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    scaled = (one if scale is None else np.asarray(scale, np.float32)) / np.float32(_ONE)
    biased = np.ascontiguousarray(zero if bias is None else bias, np.float32)
    return scale is not None or dtype.name != "uint8", scaled.astype(np.float32), biased


def run_twin(given: Args, dtype: np.dtype[Any], scale: Floats, bias: Floats) -> None:
    """What `resize_table` and `resize_direct` do with these arguments, whose addresses are of host memory.

    Args:
        given: the arguments.
        dtype: of the output.
        scale: as `factors` returns it.
        bias: as `factors` returns it.
    """
    args: Any = given
    items: Any = (Item * args.rows).from_address(args.items)
    for row, item in enumerate(items):
        box = Box(*item.box)
        rows = -(-(box.y + box.height) // EIGHTHS)
        memory: Any = (ctypes.c_ubyte * (rows * item.stride)).from_address(item.picture)
        shape, strides = (rows, item.columns, item.pixel), (item.stride, item.pixel, 1)
        picture = np.ndarray(shape, np.uint8, buffer=memory, strides=strides)
        sums = twin(picture, box, args.height, args.width, args.channels)
        if args.affine:
            values = from_f32(sums.astype(np.float32) * scale + bias, dtype)
        else:
            values = ((sums + _ONE // 2) // _ONE).astype(np.uint8)
        if item.flip:
            values = values[:, ::-1]
        # from the lowest address on, since a step may be negative
        lowest = item.origin + (args.height - 1) * min(0, item.step_y)
        size = values.size * dtype.itemsize
        whole: Any = (ctypes.c_ubyte * size).from_address(args.out + row * args.out_stride + lowest * dtype.itemsize)
        steps = (abs(item.step_y), item.step_x, item.step_c)
        out = np.ndarray(values.shape, dtype, buffer=whole, strides=tuple(dtype.itemsize * step for step in steps))
        out[...] = values[::-1] if item.step_y < 0 else values


@final
class Resize:
    """The kernel for rows of one kind. An instance belongs to one thread.

    Args:
        library: the host library, or None for the twin.
        height: rows of the result.
        width: columns of the result.
        channels: of the result, 1 or 3.
        layout: order of the result's axes.
        dtype: of the result, one of `OUTPUTS`.
        scale: shape `(channels,)`: what a value, 0 to 255, is multiplied by; None for uint8 as it is.
        bias: shape `(channels,)`: what is added then.
    """

    def __init__(
        self,
        library: Library | None,
        height: int,
        width: int,
        channels: int,
        layout: Layout,
        dtype: np.dtype[Any],
        scale: Floats | None = None,
        bias: Floats | None = None,
    ) -> None:
        self._height, self._width, self._channels = height, width, channels
        self._layout: Layout = layout
        self._dtype = dtype
        self._affine, self._scale, self._bias = factors(channels, dtype, scale, bias)
        self._entry = None
        if library is not None:
            self._entry = library.entry(f"resize_{tag(dtype)}")
            self._direct = library.entry(f"resize_direct_{tag(dtype)}")
            self._fill_table = library.entry("resize_table")
            self._item = Item()
            self._args = Args(
                items=ctypes.addressof(self._item),
                scale=self._scale.ctypes.data,
                bias=self._bias.ctypes.data,
                rows=1,
                channels=channels,
                affine=self._affine,
            )
            self._table = np.empty(0, np.int16)
            self._scratch = np.empty(0, np.uint8)

    def __call__(
        self, picture: Bytes, box: Box, out: npt.NDArray[Any], *, turn: Turn = UPRIGHT, direct: bool = False
    ) -> None:
        """Writes one row.

        Args:
            picture: shape `(rows, columns, bytes of a pixel)`, 1, 3 or 4 bytes; the pixels of a row lie side by side.
            box: in the picture, not empty, and within it.
            out: the row, C-contiguous, in the layout and dtype of this object.
            turn: how the picture is turned, its box included; height and width are those of the turned picture.
            direct: whether to go the way that a device goes, for tests.

        Raises:
            ValueError: the box is not in the picture.
        """
        rows, columns, pixel = picture.shape
        if (
            box.x < 0 or box.y < 0 or box.width <= 0 or box.height <= 0
            or box.x + box.width > EIGHTHS * columns or box.y + box.height > EIGHTHS * rows
        ):  # fmt: skip
            raise ValueError(f"{box} is not in a picture of {columns} x {rows} pixels; it counts in eighths of a pixel")
        if self._entry is None:
            self._by_twin(picture, box, out, turn)
            return
        item, args = self._item, self._args
        item.picture = picture.__array_interface__["data"][0]
        item.stride = picture.strides[0]
        item.pixel, item.columns = pixel, columns
        item.box[:] = box
        height, width = aim(item, self._height, self._width, self._channels, self._layout, turn)
        args.out = out.__array_interface__["data"][0]
        measure(args, height, width, taps(height, box.height), taps(width, box.width))
        args.ring = 1 << (args.taps_y + 7).bit_length()
        self._reserve(args.table_count, self._scratch_bytes(width, columns + args.taps_x, args.ring))
        if direct:
            self._fill_table(args)
            self._direct(args)
        else:
            self._entry(args)

    def _scratch_bytes(self, width: int, columns: int, ring: int) -> int:
        row = (width * self._channels + 16 + 31) // 32 * 32
        return ring * row * 2 + row * 4 + row * 2 + (ring + 8) // 4 * 4 * 8 + 16 * (columns + 4)

    def _reserve(self, table: int, scratch: int) -> None:
        if table > self._table.size:
            self._table = np.empty(table, np.int16)
            self._args.table = self._table.ctypes.data
        if scratch + 64 > self._scratch.size:
            self._scratch = np.empty(scratch + 64, np.uint8)
            address = self._scratch.ctypes.data
            self._args.scratch = address + -address % 64

    def _by_twin(self, picture: Bytes, box: Box, out: npt.NDArray[Any], turn: Turn) -> None:
        height, width = (self._width, self._height) if turn.swap else (self._height, self._width)
        sums = twin(picture, box, height, width, self._channels)
        if self._affine:
            values = from_f32(sums.astype(np.float32) * self._scale + self._bias, self._dtype)
        else:
            values = ((sums + _ONE // 2) // _ONE).astype(np.uint8)
        if turn.mirror_x:
            values = values[:, ::-1]
        if turn.mirror_y:
            values = values[::-1]
        if turn.swap:
            values = values.swapaxes(0, 1)
        out[...] = values if self._layout == "HWC" else values.transpose(2, 0, 1)
