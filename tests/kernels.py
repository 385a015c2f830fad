"""What the tests of the kernels share: values of every dtype, odd ones included, and comparison bit for bit."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
import numpy as np
import pytest

from hydrax_gpu._kernels import sources
from hydrax_gpu._kernels.build import compiler, is_current
from hydrax_gpu._kernels.host import Library, load


def host() -> Library:
    """The host library; skips the test where there is no compiler. `make test` builds it otherwise."""
    if compiler() is None and not sources.LIBRARY.exists():
        pytest.skip("there is no C++ compiler on this machine: the kernels' host build cannot be tested")
    assert is_current(), "the host library is not built from these sources: run hydrax_gpu/_kernels/build.py"
    return load(str(sources.LIBRARY))


def levels() -> list[Library]:
    """The library in each variant that this processor can run."""
    best = host()
    return [Library(best.path, level) for level in (1, 3) if level <= best.level]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Random bits, so every value of the dtype: infinities, NaNs and subnormals too; half of the floats are tame."""
    dtype = np.dtype(dtype)
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    wild = bits.view(dtype).reshape(shape)
    if dtype.kind in "iu":
        return wild
    tame = (rng.standard_normal(shape) * 100).astype(dtype)
    return np.where(rng.random(shape) < 0.5, wild, tame)


def bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array's bytes, one unsigned integer an element."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def assert_same_bits(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """Both have the same shape, dtype and bits."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    different = np.flatnonzero(bits(got).ravel() != bits(wanted).ravel())
    assert not len(different), (
        f"{len(different)} of {got.size} differ, first at {different[0]}: "
        f"got {got.ravel()[different[0]]!r}, wanted {wanted.ravel()[different[0]]!r}"
    )


class Rows:
    """An array of rows with gaps between them, in memory that is known to be written nowhere else.

    Args:
        shape: `(rows, ...)`.
        dtype: of the elements.
        offset: elements from a multiple of 64 bytes to the first row.
        gap: elements between two rows.
        tight: let the memory end with the last row, and begin with the first if there is no offset, so that an address
            sanitizer sees what goes beyond.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, offset: int = 0, gap: int = 0, *, tight: bool = False
    ) -> None:
        dtype = np.dtype(dtype)
        pitch = math.prod(shape[1:]) + gap
        size = (offset + shape[0] * pitch) * dtype.itemsize
        if tight:
            self._memory = np.full(max(0, size - (gap * dtype.itemsize if shape[0] else 0)), 0xA5, np.uint8)
            begin = offset * dtype.itemsize
        else:
            self._memory = np.full(size + 192, 0xA5, np.uint8)
            begin = -self._memory.ctypes.data % 64 + 64 + offset * dtype.itemsize
        strides = (pitch * dtype.itemsize, *np.empty((1, *shape[1:]), dtype).strides[1:])
        self.array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, self._memory, begin, strides)

    def assert_no_other_bytes(self) -> None:
        """What lies around and between the rows is as it was."""
        each = self.array.dtype.itemsize
        begin = self.array.ctypes.data - self._memory.ctypes.data
        own = np.ndarray((*self.array.shape, each), np.uint8, self._memory, begin, (*self.array.strides, 1))
        own[...] = 0xA5
        assert (self._memory == 0xA5).all()
