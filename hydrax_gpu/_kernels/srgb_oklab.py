"""`srgb_oklab`: colours from sRGB to Oklab and back; see `kernels/srgb_oklab.cu`, which names the sources."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.formats import Floats, from_f32, tag, to_f32
from hydrax_gpu._kernels.host import Library

__all__ = ["LAB", "SRGB", "Args", "ColourWay", "SrgbOklab", "linear_table", "to_oklab", "to_srgb"]

ColourWay: TypeAlias = Literal["last", "planes", "pixels"]
"""Where the channels are: last and stay there, last to first (to Oklab only), first to last (to sRGB only)."""

SRGB = ("uint8", "float32")
LAB = ("float32", "float16", "bfloat16")

_TO_LMS = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
           (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
_TO_LAB = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
           (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip
_FROM_LAB = ((1.0, 0.3963377774, 0.2158037573), (1.0, -0.1055613458, -0.0638541728),
             (1.0, -0.0894841775, -1.2914855480))  # fmt: skip
_FROM_LMS = ((4.0767416621, -3.3077115913, 0.2309699292), (-1.2684380046, 2.6097574011, -0.3413193965),
             (-0.0041960863, -0.7034186147, 1.7076147010))  # fmt: skip


class Args(ctypes.Structure):
    """`SrgbOklabArgs` of the source."""

    _fields_ = fields(pointers="in_ out linear", int64="in_stride out_stride rows pixels")


def linear_table() -> Floats:
    """The linear value of each sRGB byte, rounded once: shape `(256,)`."""
    x = np.arange(256) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _f(x: float) -> np.float32:
    return np.float32(x)


def _product(matrix: tuple[tuple[float, ...], ...], x: Floats) -> Floats:
    rows = [_f(a) * x[..., 0] + _f(b) * x[..., 1] + _f(c) * x[..., 2] for a, b, c in matrix]
    return np.stack(rows, -1).astype(np.float32, copy=False)


def _cube_root(x: Floats) -> Floats:
    bits = x.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    y = magnitude.view(np.float32)
    r = (magnitude // np.uint32(3) + np.uint32(0x2A512CE3)).view(np.float32)
    for _ in range(2):
        cube = r * r * r
        r = r * ((cube + (y + y)) / (cube + cube + y))
    r = np.where(magnitude != 0, r, _f(0))
    return (r.view(np.uint32) | (bits & np.uint32(0x80000000))).view(np.float32)


def _fifth_root(x: Floats) -> Floats:
    r = (x.view(np.uint32) // np.uint32(5) + np.uint32(0x32C9AF22)).view(np.float32)
    for _ in range(3):
        square = r * r
        r = (r * _f(4) + x / (square * square)) / _f(5)
    return r.astype(np.float32, copy=False)


def _to_linear(x: Floats) -> Floats:
    base = (x + _f(0.055)) / _f(1.055)
    root = _fifth_root(np.where(base < _f(0.09), _f(0.09), base))
    curved = base * base * (root * root)
    return np.where(x <= _f(0.04045), x / _f(12.92), curved).astype(np.float32, copy=False)


def _from_linear(x: Floats) -> Floats:
    root = np.sqrt(np.sqrt(_cube_root(np.where(x > 0, x, _f(0)))))
    square = root * root
    curved = _f(1.055) * (square * square * root) - _f(0.055)
    low = x <= _f(0.0031308)
    return np.where(np.isnan(x), x, np.where(low, _f(12.92) * x, curved)).astype(np.float32, copy=False)


def to_oklab(srgb: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Oklab colours of sRGB ones, both of shape `(..., 3)`; uint8 is 0..255, float32 is 0..1."""
    with np.errstate(all="ignore"):
        linear = linear_table()[srgb] if srgb.dtype == np.uint8 else _to_linear(srgb)
        return from_f32(_product(_TO_LAB, _cube_root(_product(_TO_LMS, linear))), dtype)


def to_srgb(lab: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """sRGB colours of Oklab ones, both of shape `(..., 3)`; uint8 is 0..255 and saturates, float32 is 0..1."""
    with np.errstate(all="ignore"):
        root = _product(_FROM_LAB, to_f32(lab))
        srgb = _from_linear(_product(_FROM_LMS, root * root * root))
        return from_f32(srgb * _f(255) if dtype == np.uint8 else srgb, dtype)


@final
class SrgbOklab:
    """The kernel for items of one kind.

    Args:
        library: the host library, or None for the twin.
        item_shape: of an item of the input.
        source: dtype of the input: one of `SRGB`, or of `LAB` for the way back.
        dtype: dtype of the output: one of `LAB`, or of `SRGB` for the way back.
        way: where the channels are and where they go.
        back: whether it is from Oklab to sRGB.
    """

    def __init__(
        self,
        library: Library | None,
        item_shape: tuple[int, ...],
        source: np.dtype[Any],
        dtype: np.dtype[Any],
        way: ColourWay,
        back: bool,
    ) -> None:
        self._way: ColourWay = way
        self._back = back
        self._entry = None
        if library is not None:
            self._linear = linear_table()
            kind = "oklab_to_srgb" if back else "srgb_to_oklab"
            self._entry = library.entry(f"{kind}_{way}_{tag(source)}_{tag(dtype)}")
            self._args = Args(linear=self._linear.ctypes.data, pixels=math.prod(item_shape) // 3)

    def __call__(self, rows: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Converts `rows`, shape `(rows, *item_shape)`, into `out`; the rows themselves are C-contiguous."""
        if self._entry is None:
            given = np.moveaxis(rows, 1, -1) if self._way == "pixels" else rows
            made = (to_srgb if self._back else to_oklab)(np.ascontiguousarray(given), out.dtype)
            out[...] = np.moveaxis(made, -1, 1) if self._way == "planes" else made
            return
        args = self._args
        args.in_ = address(rows)
        args.out = address(out)
        args.in_stride = rows.strides[0]
        args.out_stride = out.strides[0]
        args.rows = len(rows)
        self._entry(args)
