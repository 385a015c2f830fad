"""Number formats as `kernels/common.cuh` has them, in NumPy: to binary32 exactly, and from it by rounding.

The twins are made of these. Rounding is to nearest, ties to even, and every NaN becomes one NaN, so that a twin and its
kernel can be compared bit for bit.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["TAGS", "from_f32", "tag", "to_f32"]

Floats: TypeAlias = npt.NDArray[np.float32]

TAGS = {
    **{"bool": "u8", "uint8": "u8", "uint16": "u16", "int8": "i8", "int16": "i16", "int32": "i32"},
    **{"float16": "f16", "bfloat16": "bf16", "float32": "f32"},
    **{"float8_e4m3fn": "f8e4m3fn", "float8_e5m2": "f8e5m2"},
}
"""What the kernels' sources call a dtype, by NumPy's name for it."""

_NAN = np.uint32(0x7FC00000)


def tag(dtype: np.dtype[Any]) -> str:
    """What the kernels' sources call `dtype`."""
    return TAGS[dtype.name]


def to_f32(array: npt.NDArray[Any]) -> Floats:
    """The values as float32. Exact but for int32 beyond 2**24, which is rounded."""
    name = array.dtype.name
    if name == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if name == "float8_e5m2":
        return (array.view(np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if name == "float8_e4m3fn":
        codes = array.view(np.uint8).astype(np.uint32)
        magnitude = codes & 0x7F
        finite = ((magnitude << 20).view(np.float32) * np.float32(2.0**120)).view(np.uint32)
        return (((codes & 0x80) << 24) | np.where(magnitude != 0x7F, finite, _NAN)).view(np.float32)
    return array.astype(np.float32)


def from_f32(values: Floats, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The values in `dtype`: float32, float16, bfloat16, or uint8, which saturates and has 0 for NaN."""
    name = dtype.name
    nan = np.isnan(values)
    if name == "uint8":
        return np.rint(np.clip(np.where(nan, np.float32(0), values), 0, 255)).astype(np.uint8)
    if name == "float32":
        return np.where(nan, _NAN, values.view(np.uint32)).view(np.float32)
    if name == "float16":
        with np.errstate(over="ignore"):
            bits = np.where(nan, np.float32(0), values).astype(np.float16).view(np.uint16)
        return np.where(nan, np.uint16(0x7E00), bits).view(np.float16)
    bits = values.view(np.uint32)
    rounded = ((np.where(nan, 0, bits) + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(nan, np.uint16(0x7FC0), rounded).view(dtype)
