"""`unpack_bits`: numbers of 1, 2 or 4 bits to an element each; see `kernels/unpack_bits.cu`."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.host import Library

__all__ = ["Args", "BitOrder", "UnpackBits", "twin"]

BitOrder: TypeAlias = Literal["big", "little"]
"""Whether the first element of a byte is in its highest bits (as `numpy.packbits` does) or in its lowest."""


class Args(ctypes.Structure):
    """`UnpackBitsArgs` of the source."""

    _fields_ = fields(pointers="in_ out table", int64="in_stride out_stride rows lines width per_byte")


def twin(
    rows: npt.NDArray[np.uint8], bits: int, order: BitOrder, width: int, values: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """What the kernel computes.

    Args:
        rows: shape `(..., ceil(width * bits / 8))`.
        bits: of an element: 1, 2 or 4.
        order: of the elements in a byte.
        width: elements of a line.
        values: shape `(2 ** bits,)`: what each number becomes.

    Returns:
        `values[number]`, shape `(..., width)`.
    """
    single = np.unpackbits(rows, axis=-1, bitorder=order).reshape(*rows.shape[:-1], rows.shape[-1] * 8 // bits, bits)
    weights = 1 << np.arange(bits, dtype=np.uint8)
    numbers = single @ (weights[::-1] if order == "big" else weights)
    return values[numbers[..., :width]]


@final
class UnpackBits:
    """The kernel for items of one kind.

    Args:
        library: the host library, or None for the twin.
        shape: of an item of the output.
        bits: of an element: 1, 2 or 4.
        order: of the elements in a byte.
        values: shape `(2 ** bits,)`: what each number becomes, in the output's dtype of 1, 2 or 4 bytes.
    """

    def __init__(
        self, library: Library | None, shape: tuple[int, ...], bits: int, order: BitOrder, values: npt.NDArray[Any]
    ) -> None:
        self._bits = bits
        self._order: BitOrder = order
        self._width = shape[-1]
        self._values = values
        self._entry = None
        if library is not None:
            per_byte = 8 // bits
            every = np.arange(256, dtype=np.uint8).reshape(256, 1)
            # NumPy aligns to 16 bytes only what it likes to
            memory = np.empty(256 * per_byte * values.itemsize + 16, np.uint8)
            start = -memory.ctypes.data % 16
            table = memory[start : start + 256 * per_byte * values.itemsize]
            table[:] = twin(every, bits, order, per_byte, values).reshape(-1).view(np.uint8)
            self._table = table
            self._entry = library.entry(f"unpack_bits_{per_byte * values.itemsize}")
            lines, width = math.prod(shape[:-1]), shape[-1]
            if width % per_byte == 0:  # no byte is shared out at the end of a line: it is all one
                lines, width = 1, lines * width
            self._args = Args(table=table.ctypes.data, lines=lines, width=width, per_byte=per_byte)

    def __call__(self, rows: npt.NDArray[np.uint8], out: npt.NDArray[Any]) -> None:
        """Unpacks `rows`, shape `(rows, ..., bytes of a line)`, into `out`, shape `(rows, *shape)`."""
        if self._entry is None:
            out[...] = twin(rows, self._bits, self._order, self._width, self._values)
            return
        args = self._args
        args.in_ = address(rows)
        args.out = address(out)
        args.in_stride = rows.strides[0]
        args.out_stride = out.strides[0]
        args.rows = len(rows)
        self._entry(args)
