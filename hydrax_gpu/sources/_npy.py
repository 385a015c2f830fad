"""`NpySource`: rows of NumPy's own files, read straight into the batch."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._files import FileId, LocalFile, Opened, identify, is_remote, local_path
from hydrax_gpu.sources._source import Arrays, Parts, Reader, Row, Source, copy_array

__all__ = ["NpyColumn", "NpySource", "NpyTable", "column_of"]

_DIRECT = 4096
"""Bytes of a row from which on it is read by a system call of its own, and not copied out of a mapping."""

Path: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, slots=True)
class NpyColumn:
    """Where an array lies in a file.

    Attributes:
        file: the file.
        offset: of its first byte.
        shape: of the whole array.
        dtype: NumPy's text for the dtype, such as `<f4`.
        fortran: whether the first axis is the one that changes fastest.
    """

    file: FileId
    offset: int
    shape: tuple[int, ...]
    dtype: str
    fortran: bool

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, repr=False)
class NpyTable:
    """Arrays of the same length, by name."""

    columns: tuple[tuple[str, NpyColumn], ...]

    def __repr__(self) -> str:
        return f"NpyTable({', '.join(f'{name}: {column.file.path}' for name, column in self.columns)})"


@final
class NpySource(Source[Row, "dict[str, npt.NDArray[Any]]"]):
    """Rows of `.npy` files, or of an `.npz` file that is not compressed.

    The value of an item is a dict of its rows, by name: read-only views of the mapped files. A loader without `fill`
    reads rows of 4 KiB and more straight into the batch.

    Args:
        files: `{name: path}` of `.npy` files of the same length; or an `.npz` file, whose arrays have names; or one
            `.npy` file, whose name without the ending is the array's; or a sequence of these, one after the other.

    Raises:
        OSError: a file is not there.
        ValueError: one is not what was wanted: compressed, of Python objects, of another length or shape.
    """

    def __init__(self, files: Path | Mapping[str, Path] | Sequence[Path | Mapping[str, Path]]) -> None:
        self._reader = _NpyReader()
        parts = [files] if isinstance(files, str | os.PathLike | Mapping) else list(files)
        if not parts:
            raise ValueError("files: got none, wanted at least one")
        self._tables = [_table(part) for part in parts]
        kinds = [_kinds(table) for table in self._tables]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(f"files: part {number} has {kind}, wanted {kinds[0]} as in the first")
        lengths = [table.columns[0][1].shape[0] for table in self._tables]
        self._places = Parts(lengths)

    @property
    def reader(self) -> Reader[Row, dict[str, npt.NDArray[Any]]]:
        return self._reader

    def __len__(self) -> int:
        return self._places.total

    def descriptor(self, index: int) -> Row:
        if len(self._tables) == 1:
            return Row(self._tables[0], index)
        part, number = self._places.find(index)
        return Row(self._tables[part], number)

    def arrays(self) -> dict[str, ArraySpec]:
        found: dict[str, ArraySpec] = {}
        for name, column in self._tables[0].columns:
            dtype = np.dtype(column.dtype).newbyteorder("=")
            found[name] = ArraySpec(column.shape[1:], dtype, dtype)
        return found


def _kinds(table: NpyTable) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (column.shape[1:], column.dtype) for name, column in table.columns}


def _table(part: Path | Mapping[str, Path]) -> NpyTable:
    if isinstance(part, Mapping):
        columns = {name: column_of(path) for name, path in part.items()}
    elif os.fsdecode(part).endswith(".npz"):
        columns = _members(identify(_only_local(part)))
    else:
        columns = {os.path.basename(os.fsdecode(part)).removesuffix(".npy"): column_of(part)}
    if not columns:
        raise ValueError(f"{part!r}: got no array, wanted at least one")
    for name, column in columns.items():
        if not column.shape:
            raise ValueError(f"{column.file.path}: array {name!r} has shape (), wanted a first axis of items")
    lengths = {name: column.shape[0] for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{part!r}: got arrays of lengths {lengths}, wanted one length")
    return NpyTable(tuple(columns.items()))


def _only_local(path: Path) -> str:
    text = local_path(path)
    if is_remote(text):
        raise ValueError(
            f"{text}: NumPy's files are mapped into memory, so they must be on this machine: copy it here, or keep the "
            "data in Parquet or tar files, which are read from afar"
        )
    return text


def column_of(path: Path) -> NpyColumn:
    """Where the array of an `.npy` file lies; raises as `NpySource`."""
    file = identify(_only_local(path))
    with open(file.path, "rb") as stream:
        return _column(file, file.path, stream, 0, file.size)


def _column(file: FileId, what: str, stream: IO[bytes], begin: int, size: int) -> NpyColumn:
    """The array of which the .npy file, of so many bytes, begins at the stream's position."""
    start = stream.tell()
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise ValueError(f"{what}: it is no file of numpy.save ({error})") from error
    if dtype.hasobject or dtype.fields is not None:
        raise ValueError(f"{what}: it holds {dtype}, wanted an array of numbers")
    offset = begin + stream.tell() - start
    column = NpyColumn(file, offset, tuple(shape), dtype.str, bool(fortran) and len(shape) > 1)
    needed = math.prod(shape) * dtype.itemsize
    if offset - begin + needed > size:
        raise ValueError(f"{what}: it is truncated: {size:,} bytes are there of {offset - begin + needed:,}")
    return column


def _members(file: FileId) -> dict[str, NpyColumn]:
    columns: dict[str, NpyColumn] = {}
    with zipfile.ZipFile(file.path) as archive, open(file.path, "rb") as stream:
        for info in archive.infolist():
            what = f"{file.path}: {info.filename}"
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"{what}: it is compressed, so that its rows cannot be had one by one: write it by numpy.savez and "
                    "not by numpy.savez_compressed"
                )
            stream.seek(info.header_offset + 26)  # lengths of name and extra field, in the header of the member itself
            lengths = stream.read(4)
            begin = info.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            begin += int.from_bytes(lengths[2:], "little")
            stream.seek(begin)
            name = info.filename.removesuffix(".npy")
            columns[name] = _column(file, what, stream, begin, info.file_size)
    return columns


@final
class _OpenColumn:
    """An array of a file, mapped."""

    def __init__(self, column: NpyColumn) -> None:
        self.file = LocalFile(column.file)
        self.column = column
        dtype = np.dtype(column.dtype)
        count = math.prod(column.shape)
        end = column.offset + count * dtype.itemsize
        if end > column.file.size:
            raise SourceError(column.file.path, f"it is truncated: {column.file.size:,} bytes are there of {end:,}")
        values = self.file.view()[column.offset : end]
        self.rows = values.view(dtype).reshape(column.shape, order="F" if column.fortran else "C")
        self.row_nbytes = column.row_nbytes
        self.direct = not column.fortran and self.row_nbytes >= _DIRECT and dtype.isnative


_Open: TypeAlias = "tuple[tuple[str, _OpenColumn], ...]"


@final
class _NpyReader(Reader[Row, "dict[str, npt.NDArray[Any]]"]):
    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._opened: Opened[NpyTable, _Open] = Opened(_open)

    def read_rows(self, items: Sequence[Row]) -> list[dict[str, npt.NDArray[Any]] | BaseException]:
        tables: dict[int, _Open | SourceError] = {}
        values: list[dict[str, npt.NDArray[Any]] | BaseException] = []
        for table, number in items:
            opened = tables.get(id(table)) or self._open(table, tables)
            if isinstance(opened, SourceError):
                values.append(opened)
            else:
                values.append({name: column.rows[number] for name, column in opened})
        return values

    def fill_rows(self, items: Sequence[Row], arrays: Sequence[Arrays]) -> list[BaseException | None]:
        tables: dict[int, _Open | SourceError] = {}
        outcomes: list[BaseException | None] = []
        for (table, number), row in zip(items, arrays, strict=True):
            opened = tables.get(id(table)) or self._open(table, tables)
            if isinstance(opened, SourceError):
                outcomes.append(opened)
                continue
            try:
                _fill(dict(opened), number, row)
            except Exception as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes

    def _open(self, table: NpyTable, tables: dict[int, Any]) -> _Open | SourceError:
        try:
            found: _Open | SourceError = self._opened[table]
            for _, column in found:
                column.file.check()
        except SourceError as error:
            found = error
        tables[id(table)] = found
        return found


def _open(table: NpyTable) -> _Open:
    return tuple((name, _OpenColumn(column)) for name, column in table.columns)


def _fill(opened: dict[str, _OpenColumn], index: int, arrays: Arrays) -> None:
    for name, array in arrays.items():
        column = opened.get(name)
        if column is None:
            raise KeyError(f"the item has no {name!r}, only {', '.join(map(repr, opened))}")
        rows = column.rows
        if column.direct and array.dtype == rows.dtype and array.shape == rows.shape[1:]:
            raw = cast("npt.NDArray[np.uint8]", array.reshape(-1).view(np.uint8))
            column.file.read_into(raw, column.column.offset + index * column.row_nbytes)
        else:
            copy_array(name, rows[index], array)
