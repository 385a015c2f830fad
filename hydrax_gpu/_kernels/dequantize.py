"""`dequantize`: small codes times the scale of their block; see `kernels/dequantize.cu`."""

from __future__ import annotations

import ctypes
import math
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.formats import from_f32, tag, to_f32
from hydrax_gpu._kernels.host import Library

__all__ = ["CODES", "OUTPUTS", "SCALES", "Args", "Dequantize", "twin", "unpack_int4"]

CODES = ("int8", "float8_e4m3fn", "float8_e5m2")
"""Dtypes of the codes; besides, uint8 holds two of four bits each."""

SCALES = ("float16", "bfloat16", "float32")
OUTPUTS = ("float16", "bfloat16", "float32")


class Args(ctypes.Structure):
    """`DequantizeArgs` of the source."""

    _fields_ = fields(
        pointers="in_ scales out",
        int64="in_stride scale_stride out_stride rows lines width block",
    )


def unpack_int4(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """The two numbers of each byte, in two's complement, that in the lower four bits first."""
    both = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])
    return (both ^ 8).view(np.int8) - np.int8(8)


def twin(codes: npt.NDArray[Any], scales: npt.NDArray[Any], block: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """What the kernel computes.

    Args:
        codes: shape `(..., width)`, or `(..., width / 2)` for uint8.
        scales: shape `(..., ceil(width / block))`.
        block: elements that share a scale.
        dtype: of the result.

    Returns:
        `codes * scales` by block, rounded to float32 and then to `dtype`, shape `(..., width)`.
    """
    values = to_f32(unpack_int4(codes) if codes.dtype == np.uint8 else codes)
    spread = to_f32(np.repeat(scales, block, axis=-1)[..., : values.shape[-1]])
    with np.errstate(over="ignore", invalid="ignore"):
        return from_f32(values * spread, dtype)


@final
class Dequantize:
    """The kernel for items of one kind.

    Args:
        library: the host library, or None for the twin.
        shape: of an item of the output.
        block: elements of the last axis that share a scale.
        codes: dtype of the codes; uint8 for two of four bits.
        scales: dtype of the scales.
        dtype: of the output.
    """

    def __init__(
        self,
        library: Library | None,
        shape: tuple[int, ...],
        block: int,
        codes: np.dtype[Any],
        scales: np.dtype[Any],
        dtype: np.dtype[Any],
    ) -> None:
        self._block = block
        self._entry = None
        if library is not None:
            kind = "i4" if codes.name == "uint8" else tag(codes)
            self._entry = library.entry(f"dequantize_{kind}_{tag(scales)}_{tag(dtype)}")
            lines, width = math.prod(shape[:-1]), shape[-1]
            if width % block == 0:  # no block is cut off at the end of a line: it is all one
                lines, width = 1, lines * width
            self._args = Args(lines=lines, width=width, block=block)

    def __call__(self, codes: npt.NDArray[Any], scales: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Multiplies `codes` and `scales` into `out`; all have the rows first, which are C-contiguous."""
        if self._entry is None:
            out[...] = twin(codes, scales, self._block, out.dtype)
            return
        args = self._args
        args.in_ = address(codes)
        args.scales = address(scales)
        args.out = address(out)
        args.in_stride = codes.strides[0]
        args.scale_stride = scales.strides[0]
        args.out_stride = out.strides[0]
        args.rows = len(codes)
        self._entry(args)
