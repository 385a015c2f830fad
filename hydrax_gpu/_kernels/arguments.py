"""Kernel arguments as structures that are the same in C."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy.typing as npt

__all__ = ["address", "fields"]


def fields(*, pointers: str, int64: str, int32: str = "") -> list[Any]:
    """`_fields_` of a `ctypes.Structure`, from names between spaces, in the order of the arguments here."""
    kinds = ((pointers, ctypes.c_void_p), (int64, ctypes.c_int64), (int32, ctypes.c_int32))
    return [(name, kind) for names, kind in kinds for name in names.split()]


def address(array: npt.NDArray[Any]) -> int:
    """Of the first element; quicker than `array.ctypes.data`."""
    return array.__array_interface__["data"][0]
