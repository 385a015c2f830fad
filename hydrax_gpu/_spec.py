"""One declaration gives everything: `ArraySpec` → `Layout` → offsets, views and dtypes.

A batch is one contiguous block of memory. Each declared array starts at an offset that is a multiple of `ALIGNMENT`
and holds `batch_size` rows without gaps, so that the loader's view of an item, the batch's view, and the `jax.Array`
are all plain C-contiguous windows on the same bytes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

__all__ = ["ALIGNMENT", "ArrayLayout", "ArraySpec", "Layout", "LayoutTuple"]

ALIGNMENT = 256
"""Bytes. JAX aliases host memory from 64-byte boundaries on; CUDA's coalesced and bulk copies like 256."""

Buffer: TypeAlias = Any
"""Anything NumPy accepts as a buffer: a memoryview, a ctypes array. (`collections.abc.Buffer` needs Python 3.12.)"""

LayoutTuple: TypeAlias = tuple[tuple[int, ...], np.dtype[Any], np.dtype[Any], int, int]
"""`(shape with the batch dimension, NumPy dtype, JAX dtype, offset in bytes, number of elements)`."""

# What DLPack can carry to JAX, by dtype name. The ml_dtypes names come with jax.
_SUPPORTED = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
        *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Declares one array of a batch.

    Attributes:
        shape: shape of one item, without the batch dimension; `()` for a scalar.
        numpy_dtype: dtype of the memory that the loader function fills.
        jax_dtype: dtype of the `jax.Array` in the batch; converted to when it differs from `numpy_dtype`.
    """

    shape: tuple[int, ...]
    numpy_dtype: npt.DTypeLike
    jax_dtype: Any

    @staticmethod
    def of(name: str, value: object) -> ArraySpec:
        """Reads a user's declaration: an `ArraySpec` or a `(shape, numpy_dtype, jax_dtype)` tuple.

        Raises:
            TypeError: the declaration is neither.
            ValueError: shape or dtype is not one that a batch can hold.
        """
        if isinstance(value, ArraySpec):
            parts: tuple[object, ...] = (value.shape, value.numpy_dtype, value.jax_dtype)
        elif isinstance(value, tuple | list):
            parts = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        else:
            parts = ()
        if len(parts) != 3:
            raise TypeError(
                f"array {name!r}: got {value!r}, wanted (item_shape, numpy_dtype, jax_dtype) or an ArraySpec, "
                "for example ((32, 32, 3), np.uint8, jnp.float32)"
            )
        shape, numpy_dtype, jax_dtype = parts
        return ArraySpec(
            _shape(name, shape), _dtype(name, "numpy_dtype", numpy_dtype), _dtype(name, "jax_dtype", jax_dtype)
        )


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Where one array of a batch lies. `shape` has the batch dimension first; `offset` and `nbytes` are bytes."""

    name: str
    shape: tuple[int, ...]
    numpy_dtype: np.dtype[Any]
    jax_dtype: np.dtype[Any]
    offset: int

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.numpy_dtype.itemsize

    @property
    def row_nbytes(self) -> int:
        """Bytes from one row to the next."""
        return math.prod(self.shape[1:]) * self.numpy_dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory of one batch: its arrays, in the order they were declared, and its size in bytes."""

    rows: int
    arrays: tuple[ArrayLayout, ...]
    nbytes: int

    @staticmethod
    def build(rows: int, specs: Mapping[str, object]) -> Layout:
        """Lays `specs` out for batches of `rows` items.

        Raises:
            TypeError, ValueError: a declaration is not valid; the message names the array.
        """
        if not specs:
            raise ValueError("got no arrays, wanted at least one {name: (item_shape, numpy_dtype, jax_dtype)}")
        arrays: list[ArrayLayout] = []
        offset = 0
        for name, value in specs.items():
            if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"array names are non-empty strings, got {name!r}")
            spec = ArraySpec.of(name, value)
            array = ArrayLayout(name, (rows, *spec.shape), np.dtype(spec.numpy_dtype), np.dtype(spec.jax_dtype), offset)
            arrays.append(array)
            offset = _aligned(offset + array.nbytes)
        return Layout(rows, tuple(arrays), offset)

    def tuples(self) -> MappingProxyType[str, LayoutTuple]:
        """The layouts as hydrax shows them: name → `LayoutTuple`."""
        return MappingProxyType({a.name: (a.shape, a.numpy_dtype, a.jax_dtype, a.offset, a.count) for a in self.arrays})

    def batch_views(self, memory: Buffer, rows: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """Arrays of the first `rows` rows (all by default) over `memory`, which starts at the batch's first byte."""
        n = self.rows if rows is None else rows
        return {
            a.name: np.ndarray((n, *a.item_shape), a.numpy_dtype, buffer=memory, offset=a.offset) for a in self.arrays
        }

    def item_views(self, memory: memoryview) -> Sequence[MappingProxyType[str, npt.NDArray[Any]]]:
        """For each row, the read-only mapping of writable views that the loader function is called with."""
        return [MappingProxyType(views) for views in self._rows(memory)]

    def _rows(self, memory: memoryview) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for row in range(self.rows):
            yield {
                a.name: np.ndarray(a.item_shape, a.numpy_dtype, buffer=memory, offset=a.offset + row * a.row_nbytes)
                for a in self.arrays
            }


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _shape(name: str, shape: object) -> tuple[int, ...]:
    try:
        dims = tuple(operator.index(d) for d in cast("Sequence[Any]", shape))
    except TypeError:
        raise TypeError(
            f"array {name!r}: got shape {shape!r}, wanted a tuple of dimensions without the batch dimension, "
            "() for one number an item"
        ) from None
    if any(d < 1 for d in dims):
        raise ValueError(f"array {name!r}: got shape {dims}, wanted dimensions of at least 1")
    return dims


def _dtype(name: str, which: str, value: object) -> np.dtype[Any]:
    if value is None:  # NumPy would take it for float64
        raise TypeError(f"array {name!r}: got no {which}, wanted a dtype such as np.uint8")
    try:
        dtype = np.dtype(cast("npt.DTypeLike", value))
    except TypeError:
        # Names such as "bfloat16" are known to NumPy only once ml_dtypes, which comes with jax, was imported.
        import ml_dtypes

        try:
            dtype = np.dtype(getattr(ml_dtypes, str(value)))
        except (AttributeError, TypeError):
            raise ValueError(
                f"array {name!r}: {which} {value!r} is not a dtype that NumPy or ml_dtypes knows"
            ) from None
    if dtype.name not in _SUPPORTED:
        raise ValueError(
            f"array {name!r}: {which} {dtype.name!r} cannot be held by a jax.Array that shares memory; "
            f"wanted one of {', '.join(sorted(_SUPPORTED))}"
        )
    if not dtype.isnative:
        raise ValueError(
            f"array {name!r}: {which} {dtype.str!r} has foreign byte order; wanted {dtype.newbyteorder('=')}"
        )
    return dtype
