"""`convert`: affine conversion of dtype, and of the order of channels; see `kernels/convert.cu`."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.formats import Floats, from_f32, tag, to_f32
from hydrax_gpu._kernels.host import Library

__all__ = ["INPUTS", "OUTPUTS", "Args", "Convert", "Way", "twin"]

Way: TypeAlias = Literal["last", "first", "planes", "pixels"]
"""Where the channels are: last and stay there, first and stay there, last to first (HWC → CHW), first to last."""

INPUTS = ("uint8", "int8", "uint16", "int16", "int32", "float16", "bfloat16", "float32")
OUTPUTS = ("uint8", "float16", "bfloat16", "float32")


class Args(ctypes.Structure):
    """`ConvertArgs` of the source."""

    _fields_ = fields(
        pointers="in_ out scale bias",
        int64="in_stride out_stride rows pixels channels",
    )


def twin(rows: npt.NDArray[Any], scale: Floats, bias: Floats, way: Way, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """What the kernel computes.

    Args:
        rows: shape `(rows, ..., channels)`, or `(rows, channels, ...)` if `way` has the channels first.
        scale: shape `(channels,)`.
        bias: shape `(channels,)`.
        way: where the channels are and where they go.
        dtype: of the result.

    Returns:
        `rows * scale + bias` by channel, each operation rounded to float32, in `dtype` and the new order.
    """
    values = to_f32(rows)
    if way in ("first", "pixels"):
        values = np.moveaxis(values, 1, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        values = values * scale + bias
    if way in ("first", "planes"):
        values = np.moveaxis(values, -1, 1)
    return from_f32(np.ascontiguousarray(values), dtype)


@final
class Convert:
    """The kernel for items of one kind.

    Args:
        library: the host library, or None for the twin.
        item_shape: of an item of the input.
        source: dtype of the input, one of `INPUTS`.
        dtype: dtype of the output, one of `OUTPUTS`.
        way: where the channels are and where they go.
        scale: shape `(channels,)`, float32.
        bias: shape `(channels,)`, float32.
    """

    def __init__(
        self,
        library: Library | None,
        item_shape: tuple[int, ...],
        source: np.dtype[Any],
        dtype: np.dtype[Any],
        way: Way,
        scale: Floats,
        bias: Floats,
    ) -> None:
        self._way: Way = way
        self._scale = np.ascontiguousarray(scale, np.float32)
        self._bias = np.ascontiguousarray(bias, np.float32)
        channels = len(self._scale)
        self._entry = None
        if library is not None:
            self._entry = library.entry(f"convert_{way}_{tag(source)}_{tag(dtype)}")
            self._args = Args(
                scale=self._scale.ctypes.data,
                bias=self._bias.ctypes.data,
                pixels=math.prod(item_shape) // channels,
                channels=channels,
            )

    def __call__(self, rows: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Converts `rows`, shape `(rows, *item_shape)`, into `out`; the rows themselves are C-contiguous."""
        if self._entry is None:
            out[...] = twin(rows, self._scale, self._bias, self._way, out.dtype)
            return
        args = self._args
        args.in_ = address(rows)
        args.out = address(out)
        args.in_stride = rows.strides[0]
        args.out_stride = out.strides[0]
        args.rows = len(rows)
        self._entry(args)
