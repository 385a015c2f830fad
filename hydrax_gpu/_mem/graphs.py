"""The fields of an item in a slot, for a device to run a graph of operators on them.

What `encoded.py` is for pictures, this is where all arrays of a row come out of one graph. Workers, which see no
device, read the fields of an item; the device runs the graph on those of a batch. What lies in a slot for one row:

    Record (16 bytes) | Entry (96 bytes) for each field | the fields' arrays, each at a multiple of 64 bytes

A row without fields (`PIXELS`) was loaded by the worker, into the arrays themselves.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._mem.encoded import FILE, PIXELS
from hydrax_gpu._spec import Layout as BatchLayout

__all__ = [
    "FieldArrays", "GraphFiles", "GraphLoader", "GraphRows", "OpenGraph", "Output", "read_fields", "with_graph",
    "write_fields",
]  # fmt: skip

_ALIGNMENT = 64
_DIMENSIONS = 8

FieldArrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Arrays of an item by the names of its fields."""


class _Record(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_int32),  # first, as in `encoded.Record`
        ("fields", ctypes.c_int32),
        ("names", ctypes.c_uint32),  # checksum of all names that the item has
        ("reserved", ctypes.c_uint32),
    )


class _Entry(ctypes.Structure):
    _fields_ = (
        ("offset", ctypes.c_int64),  # from the record on
        ("index", ctypes.c_int32),  # among the names
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_char * 16),
        ("shape", ctypes.c_int64 * _DIMENSIONS),
    )


class Output(NamedTuple):
    """What a graph has made for one array of one row.

    Attributes:
        address: of its first byte; without gaps, in C order.
        shape: of the row.
        dtype: of its elements.
        on_device: whether the address is one of device memory.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    on_device: bool


class OpenGraph(Protocol):
    """A graph that is built for one device. Called by one thread at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all fields of its items."""
        ...

    def run(
        self,
        rows: Sequence[int],
        fields: Mapping[int, FieldArrays],
        seeds: Mapping[int, int] | None,
        stream: int | None,
    ) -> Iterator[tuple[list[int], Mapping[str, Sequence[Output]] | str, Any]]:
        """Runs the graph on some rows.

        Args:
            rows: their numbers.
            fields: of each row; read where they are, until what is returned last is let go of.
            seeds: of each row; None for validation.
            stream: on which the outputs are to be read; None for a device that is the host.

        Returns:
            For groups of rows the outputs, by array, in the order of the group, or why there are none for the one row
            in it. And what must live until the outputs have been read.
        """
        ...


class GraphRows(Protocol):
    """What rows are made by: a graph that can be built for a device."""

    names: tuple[str, ...]
    """Arrays that it makes."""

    def open(self, training: bool, device_id: int | None) -> OpenGraph:
        """Builds it.

        Args:
            training: for training, or for validation.
            device_id: number of the CUDA device; None for the host in the place of one.

        Raises:
            Exception: it cannot be built for this device, or is of no use there; the message says why.
        """
        ...


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """What a loader says of a group whose rows it can leave to a device.

    Attributes:
        nbytes: room for the fields of an item.
        rows: what makes rows of them.
        training: whether the group is for training.
    """

    nbytes: int
    rows: GraphRows
    training: bool


class GraphLoader(Protocol):
    """A loader that can leave items to a device; see `EncodingLoader.encode` for the other half."""

    def graph_files(self, layout: BatchLayout, data: Sequence[Any], training: bool) -> GraphFiles | None:
        """What there is to say of a group with such batches and items; None to leave nothing to a device."""
        ...


def with_graph(layout: BatchLayout, files: GraphFiles | None) -> BatchLayout:
    """The layout with room for the fields of its rows, if they are left to a device."""
    if files is None:
        return layout
    return layout.with_encoded(files.rows.names[0], files.nbytes, 0, files, files.rows.names)


def write_fields(row: npt.NDArray[np.uint8], names: Sequence[str], fields: FieldArrays | None) -> bool:
    """Puts the fields of an item into a row's region, or, with None, that there are none.

    Args:
        row: the region, uint8.
        names: of all fields that the item has.
        fields: those to be written, C-contiguous.

    Returns:
        Whether there was room; if not, none are there.
    """
    record: Any = _Record.from_buffer(row)  # pyright: ignore[reportArgumentType]
    record.state = PIXELS
    if fields is None:
        return True
    head = ctypes.sizeof(_Record)
    at = _aligned(head + len(fields) * ctypes.sizeof(_Entry))
    if at > row.size or any(array.ndim > _DIMENSIONS for array in fields.values()):
        return False
    entries: Any = (_Entry * len(fields)).from_buffer(row, head)  # pyright: ignore[reportArgumentType]
    for entry, (name, array) in zip(entries, fields.items(), strict=True):
        if at + array.nbytes > row.size:
            return False
        entry.offset, entry.index, entry.ndim = at, names.index(name), array.ndim
        entry.dtype, entry.shape[: array.ndim] = array.dtype.str.encode(), array.shape
        row[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        at = _aligned(at + array.nbytes)
    record.fields, record.names = len(fields), _checksum(names)
    record.state = FILE
    return True


def read_fields(row: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[Any]] | None:
    """The fields in a row's region, where they are; None if there are none.

    Args:
        row: the region, uint8.
        names: of all fields that items are to have.

    Raises:
        ValueError: what is there was not written for items with these names, or by nothing that is known here.
    """
    record: Any = _Record.from_buffer(row)  # pyright: ignore[reportArgumentType]
    if record.state == PIXELS:
        return None
    head, size = ctypes.sizeof(_Record), ctypes.sizeof(_Entry)
    if record.state != FILE or not 0 <= record.fields <= (row.size - head) // size:
        raise ValueError("it was given no fields")
    if record.names != _checksum(names):
        raise ValueError(f"its item has other fields than the first one, which has {', '.join(names)}")
    entries: Any = (_Entry * record.fields).from_buffer(row, head)  # pyright: ignore[reportArgumentType]
    fields: dict[str, npt.NDArray[Any]] = {}
    for entry in entries:
        if not (0 <= entry.index < len(names) and 0 <= entry.ndim <= _DIMENSIONS):
            raise ValueError("it was given fields that cannot be")
        shape = tuple(entry.shape[: entry.ndim])
        dtype = np.dtype(entry.dtype.decode())
        try:
            fields[names[int(entry.index)]] = np.ndarray(shape, dtype, buffer=row, offset=entry.offset)
        except (TypeError, ValueError) as error:  # beyond the end, or of a negative size
            raise ValueError("it was given fields that cannot be") from error
    return fields


def _checksum(names: Sequence[str]) -> int:
    return zlib.crc32("\0".join(names).encode())


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
