"""`quantize`: floats to codes of a byte and a scale for each block of them, as a cache keeps them; see
`kernels/quantize.cu`.

Symmetric, linear, and scaled by the largest magnitude of a block ("absmax"), as in Dettmers et al., *8-bit Optimizers
via Block-wise Quantization*, https://arxiv.org/abs/2110.02861, without their dynamic data type. `dequantize` undoes it.

A *record* is an item of `count` elements: its codes, then, from the next multiple of 4 on, its scales, and zeros up to
a multiple of 16, so that records in a row are aligned.
"""

from __future__ import annotations

import ctypes
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.formats import tag, to_f32
from hydrax_gpu._kernels.host import Library

__all__ = ["BLOCK", "INPUTS", "Args", "Quantize", "parts", "record_nbytes", "twin"]

BLOCK = 64
"""Elements that share a scale: of an item as they lie in memory, whatever its shape. The last may be shorter."""

INPUTS = ("float16", "bfloat16", "float32")

_ALIGNMENT = 16
_SMALLEST = np.float32(2.0**-126)
_LARGEST = np.float32(float.fromhex("0x1.020406p+121"))  # of those that 127 times is finite
_INFINITY = np.uint32(0x7F800000)
_ROUNDER = np.float32(1.5 * 2**23)
_PART = 1 << 16  # elements that the twin works on at a time, so that they stay in a cache


class Args(ctypes.Structure):
    """`QuantizeArgs` of the source."""

    _fields_ = fields(pointers="in_ out", int64="in_stride out_stride rows count scales_offset out_bytes")


def _scales_offset(count: int) -> int:
    return -(-count // 4) * 4


def record_nbytes(count: int) -> int:
    """Bytes of the record of `count` elements."""
    return -(-(_scales_offset(count) + 4 * -(-count // BLOCK)) // _ALIGNMENT) * _ALIGNMENT


def parts(records: npt.NDArray[np.uint8], count: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes, shape `(rows, count)`, and scales, shape `(rows, ceil(count / BLOCK))`, of records: views, without a look
    at what is in them."""
    begin = _scales_offset(count)
    scales = records[:, begin : begin + 4 * -(-count // BLOCK)]
    return records[:, :count].view(np.int8), scales.view(np.float32)


def twin(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """What the kernel computes, in binary32.

    Args:
        values: shape `(rows, count)`, of one of `INPUTS`.

    Returns:
        Codes from -127 to 127, shape `(rows, count)`, and scales, shape `(rows, ceil(count / BLOCK))`.

        A block's scale is `amax / 127`, 2^-126 at least, and such that 127 times it is finite; a code is
        `value * (1 / scale)`, rounded to the nearest integer, ties to even. So a code times its scale is within half a
        scale of the value, give or take the rounding of binary32: within 1.0001 * amax / 254 (or 2^-126, if that is
        more), and exact for 0. The scale of a block whose values are not all finite is infinity, and its codes are 0.
    """
    rows, count = values.shape
    blocks = -(-count // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :count] = to_f32(values)
    lines = padded.reshape(rows, blocks, BLOCK)
    # as integers, because magnitudes of floats are in their order, infinities and NaNs above all others
    largest = (lines.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(axis=2, initial=0)
    finite = largest < _INFINITY
    with np.errstate(all="ignore"):
        scales = np.clip(largest.view(np.float32) / np.float32(127), _SMALLEST, _LARGEST)
        products = lines * (np.float32(1) / scales)[:, :, None]
        # the sum's last bits are the nearest integer
        codes = (products + _ROUNDER).view(np.int32).astype(np.int8)
    scales[~finite] = np.inf
    codes[~finite] = 0
    return codes.reshape(rows, blocks * BLOCK)[:, :count], scales


@final
class Quantize:
    """The kernel for items of one kind.

    Args:
        library: the host library, or None for the twin.
        count: elements of an item.
        dtype: of the elements, one of `INPUTS`.
    """

    def __init__(self, library: Library | None, count: int, dtype: np.dtype[Any]) -> None:
        self._count = count
        self._entry = None
        if library is not None:
            self._entry = library.entry(f"quantize_{tag(dtype)}")
            self._args = Args(count=count, scales_offset=_scales_offset(count), out_bytes=record_nbytes(count))

    def __call__(self, values: npt.NDArray[Any], records: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Fills `records`, shape `(rows, record_nbytes(count))`, with `values`, shape `(rows, count)`.

        The elements of a row lie behind one another, and rows of `records` begin at multiples of 4 bytes. Returns for
        each row whether all of its values are finite.
        """
        if self._entry is not None:
            args = self._args
            args.in_ = address(values)
            args.out = address(records)
            args.in_stride = values.strides[0]
            args.out_stride = records.strides[0]
            args.rows = len(values)
            self._entry(args)
        else:
            self._by_twin(values, records)
        return np.all(parts(records, self._count)[1] < np.inf, axis=1)

    def _by_twin(self, values: npt.NDArray[Any], records: npt.NDArray[np.uint8]) -> None:
        step = max(1, _PART // max(1, self._count))
        for begin in range(0, len(values), step):
            some = records[begin : begin + step]
            some[:, self._count :] = 0
            codes, scales = parts(some, self._count)
            codes[...], scales[...] = twin(values[begin : begin + step])
