"""One declaration gives everything: `ArraySpec` → `Layout` → offsets, views and dtypes.

A batch is one contiguous block of memory. Each declared array starts at an offset that is a multiple of `ALIGNMENT`
and holds `batch_size` rows without gaps, so that the loader's view of an item, the batch's view, and the `jax.Array`
are all plain C-contiguous windows on the same bytes.

An array with a decode has two regions: what the loader function writes (*wire*) and what the batch holds. All wire
wire regions come first, those of arrays without a decode among them, so that one copy takes them to a device.

An array whose rows a device decodes from compressed files has a third region, behind all others: the files. It is the
host's alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hydrax_gpu.decode.base import Decode, Kept

__all__ = ["ALIGNMENT", "ArrayLayout", "ArraySpec", "EncodedLayout", "Layout", "LayoutTuple", "kept"]

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
        decode: what the workers, or a device, make of it: `Normalize`, `UnpackBits`, `Dequantize`, `PadRagged` or
            `Oklab`. The loader function then fills an array of `shape` and `numpy_dtype`, and the batch holds what the
            decode says.
    """

    shape: tuple[int, ...]
    numpy_dtype: npt.DTypeLike
    jax_dtype: Any
    decode: Decode | None = None

    @staticmethod
    def of(name: str, value: object) -> ArraySpec:
        """Reads a user's declaration: an `ArraySpec` or a `(shape, numpy_dtype, jax_dtype)` tuple.

        Raises:
            TypeError: the declaration is neither.
            ValueError: shape or dtype is not one that a batch can hold.
        """
        decode = None
        if isinstance(value, ArraySpec):
            decode = value.decode
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
            _shape(name, shape),
            _dtype(name, "numpy_dtype", numpy_dtype),
            _dtype(name, "jax_dtype", jax_dtype),
            _decode(name, decode),
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
class EncodedLayout:
    """Where the compressed files of an array's rows lie, for a device to decode them; see `_mem.encoded`.

    Attributes:
        name: of the array; its rows are those of `Layout.wire`.
        offset: of the first row's file, in bytes.
        row_nbytes: bytes from one row's to the next, a multiple of `ALIGNMENT`.
        scratch: offset of `scratch_nbytes` bytes that belong to whoever drives the device.
        scratch_nbytes: their number.
        rows: what the decoded rows are, an `_mem.encoded.PictureRows` or an `_mem.graphs.GraphFiles`.
        names: of all arrays of which a file makes a row.
    """

    name: str
    offset: int
    row_nbytes: int
    scratch: int
    scratch_nbytes: int
    rows: Any
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory of one batch.

    Attributes:
        rows: items of a batch.
        arrays: what the batch holds, in the order of declaration; what a decode adds follows its array.
        nbytes: size of it all, in bytes.
        wire: what the loader function writes, in the order of declaration. Without a decode, an array of the batch.
        wire_nbytes: size of the wire regions, which are the first, in bytes.
        decodes: how those of `arrays` that are not in `wire` come about, by the name of the declared array.
        encoded: those of `wire` that a device may decode from files.
    """

    rows: int
    arrays: tuple[ArrayLayout, ...]
    nbytes: int
    wire: tuple[ArrayLayout, ...]
    wire_nbytes: int
    decodes: tuple[tuple[str, Decode], ...] = ()
    encoded: tuple[EncodedLayout, ...] = ()

    @staticmethod
    def build(rows: int, specs: Mapping[str, object]) -> Layout:
        """Lays `specs` out for batches of `rows` items.

        Raises:
            TypeError, ValueError: a declaration is not valid; the message names the array.
        """
        if not specs:
            raise ValueError("got no arrays, wanted at least one {name: (item_shape, numpy_dtype, jax_dtype)}")
        wire: list[ArrayLayout] = []
        decodes: list[tuple[str, Decode]] = []
        offset = 0
        for name, value in specs.items():
            if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"array names are non-empty strings, got {name!r}")
            spec = ArraySpec.of(name, value)
            array = ArrayLayout(name, (rows, *spec.shape), np.dtype(spec.numpy_dtype), np.dtype(spec.jax_dtype), offset)
            wire.append(array)
            offset = _aligned(offset + array.nbytes)
            if spec.decode is not None:
                decodes.append((name, spec.decode))
        if not decodes:
            return Layout(rows, tuple(wire), offset, tuple(wire), offset)
        arrays, end = _decoded(rows, wire, dict(decodes), offset)
        return Layout(rows, arrays, end, tuple(wire), offset, tuple(decodes))

    def with_rows(self, rows: int) -> Layout:
        """The same arrays for batches of another size."""
        if rows == self.rows:
            return self
        decodes = dict(self.decodes)
        return Layout.build(
            rows,
            {a.name: ArraySpec(a.item_shape, a.numpy_dtype, a.jax_dtype, decodes.get(a.name)) for a in self.wire},
        )

    def with_encoded(
        self, name: str, row_nbytes: int, scratch_nbytes: int, rows: Any, names: Sequence[str] = ()
    ) -> Layout:
        """The same with room for the files of an array's rows.

        Args:
            name: of an array of `wire`.
            row_nbytes: for each row; rounded up.
            scratch_nbytes: for whoever drives the device; rounded up.
            rows: what the rows are.
            names: of all arrays that are made of a file, if it is not that one alone.
        """
        stride, scratch = _aligned(row_nbytes), _aligned(scratch_nbytes)
        offset, together = self.nbytes + scratch, tuple(names) or (name,)
        added = EncodedLayout(name, offset, stride, self.nbytes, scratch, rows, together)
        nbytes = self.nbytes + scratch + self.rows * stride
        return replace(self, nbytes=nbytes, encoded=(*self.encoded, added))

    @property
    def arrays_nbytes(self) -> int:
        """Bytes of all arrays, compressed files left out."""
        return self.encoded[0].scratch if self.encoded else self.nbytes

    @property
    def batch_nbytes(self) -> int:
        """Bytes of what the batch holds, each array rounded up to the alignment."""
        return sum(_aligned(array.nbytes) for array in self.arrays)

    def tuples(self) -> MappingProxyType[str, LayoutTuple]:
        """What the batch holds, as hydrax shows it: name → `LayoutTuple`."""
        return MappingProxyType({a.name: (a.shape, a.numpy_dtype, a.jax_dtype, a.offset, a.count) for a in self.arrays})

    def batch_views(self, memory: Buffer, rows: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """Arrays of the first `rows` rows (all by default) over `memory`, which starts at the batch's first byte."""
        return _views(self.arrays, memory, self.rows if rows is None else rows)

    def wire_views(self, memory: Buffer) -> dict[str, npt.NDArray[Any]]:
        """As `batch_views`, of what the loader function writes."""
        return _views(self.wire, memory, self.rows)

    def item_views(self, memory: memoryview) -> Sequence[MappingProxyType[str, npt.NDArray[Any]]]:
        """For each row, the read-only mapping of writable views that the loader function is called with."""
        return [MappingProxyType(views) for views in self._rows(memory)]

    def file_views(self, memory: Buffer) -> Sequence[MappingProxyType[str, npt.NDArray[Any]]]:
        """For each row, the read-only mapping of its regions for compressed files, uint8."""
        return [
            MappingProxyType(
                {
                    e.name: np.ndarray((e.row_nbytes,), np.uint8, buffer=memory, offset=e.offset + row * e.row_nbytes)
                    for e in self.encoded
                }
            )
            for row in range(self.rows)
        ]

    def _rows(self, memory: memoryview) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for row in range(self.rows):
            yield {
                a.name: np.ndarray(a.item_shape, a.numpy_dtype, buffer=memory, offset=a.offset + row * a.row_nbytes)
                for a in self.wire
            }


def _views(arrays: Sequence[ArrayLayout], memory: Buffer, rows: int) -> dict[str, npt.NDArray[Any]]:
    return {a.name: np.ndarray((rows, *a.item_shape), a.numpy_dtype, buffer=memory, offset=a.offset) for a in arrays}


def _decoded(
    rows: int, wire: Sequence[ArrayLayout], decodes: Mapping[str, Decode], offset: int
) -> tuple[tuple[ArrayLayout, ...], int]:
    """The batch's arrays, and where they end."""
    declared = kept(wire)
    arrays: list[ArrayLayout] = []
    for array in wire:
        decode = decodes.get(array.name)
        if decode is None:
            arrays.append(array)
            continue
        try:
            outputs = decode.outputs(array.name, declared)
            taken = [name for name in outputs if name != array.name and name in declared]
            taken += [name for name in outputs if any(name == each.name for each in arrays)]
            if taken:
                raise ValueError(
                    f"{type(decode).__name__}: there is an array {taken[0]!r} already, wanted another name"
                )
        except ValueError as error:
            raise ValueError(f"array {array.name!r}: {error}") from None
        for name, (shape, dtype, jax_dtype) in outputs.items():
            added = ArrayLayout(name, (rows, *shape), dtype, jax_dtype, offset)
            arrays.append(added)
            offset = _aligned(offset + added.nbytes)
    return tuple(arrays), offset


def kept(arrays: Iterable[ArrayLayout]) -> dict[str, Kept]:
    """The arrays as a decode knows them."""
    from hydrax_gpu.decode.base import Kept

    return {a.name: Kept(a.item_shape, a.numpy_dtype, a.jax_dtype) for a in arrays}


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


def _decode(name: str, value: object) -> Decode | None:
    if value is None:
        return None
    from hydrax_gpu.decode.base import Decode

    if not isinstance(value, Decode):
        raise TypeError(
            f"array {name!r}: got decode={value!r}, wanted Normalize, UnpackBits, Dequantize, PadRagged or Oklab"
        )
    return value
