"""`ParquetSource` and `ArrowSource`: rows of tables, column by column."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

from hydrax_gpu._arguments import at_least
from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._columns import Columns, arrays_of, columns_of, pyarrow
from hydrax_gpu.sources._files import FileId, Opened, OpenFile, RemoteFile, identify, open_file
from hydrax_gpu.sources._source import Parts, Reader, Source
from hydrax_gpu.sources._tar import expand

__all__ = ["ArrowSource", "ParquetSource", "TableFile", "TableRow"]

Path: TypeAlias = "str | os.PathLike[str]"
Value: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True, repr=False)
class TableFile:
    """A file with a table.

    Attributes:
        file: the file.
        columns: names of those that are read.
    """

    file: FileId
    columns: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.file.path}[{', '.join(self.columns)}]"


class TableRow(NamedTuple):
    """Descriptor of a row of a file with a table.

    Attributes:
        table: the file; the same object for all rows of it.
        part: number of the row group or record batch.
        number: of the row in it, from 0.
    """

    table: TableFile
    part: int
    number: int


class _TableSource(Source[TableRow, Value]):
    """What both have in common: files with parts (row groups, record batches), each with so many rows.

    Args:
        paths: see `ParquetSource`.
        columns: see `ParquetSource`.
        cache_bytes: see `ParquetSource`.
    """

    _kind = ""
    """Which of `_KINDS` the files are."""

    def __init__(
        self, paths: Path | Iterable[Path], columns: Sequence[str] | None = None, *, cache_bytes: int = 1 << 28
    ) -> None:
        self._reader = _TableReader(self._kind, at_least("cache_bytes", cache_bytes, 0))
        if isinstance(columns, str):
            raise TypeError(f"columns: got {columns!r}, wanted several names, such as [{columns!r}]")
        self._tables: list[TableFile] = []
        self._schema: Any = None
        counts: list[int] = []  # of all parts of all files
        self._parts: list[tuple[int, int]] = []
        for path in expand(paths):
            file = identify(path)
            opened = _KINDS[self._kind](file)
            schema = opened.schema(columns)
            if self._schema is None:
                self._schema = schema
            elif not schema.equals(self._schema):
                raise ValueError(f"{file.path}: got columns {schema}\nwanted those of the first file, {self._schema}")
            rows = opened.rows()
            self._parts += [(len(self._tables), number) for number in range(len(rows))]
            self._tables.append(TableFile(file, tuple(schema.names)))
            counts += rows
        self._places = Parts(counts)
        if not sum(counts):
            raise ValueError(f"{self._tables[0].file.path}: got no row, wanted at least one")

    def __len__(self) -> int:
        return self._places.total

    @property
    def schema(self) -> Any:
        """The `pyarrow.Schema` of the columns that are read."""
        return self._schema

    def descriptor(self, index: int) -> TableRow:
        place, number = self._places.find(index)
        table, part = self._parts[place]
        return TableRow(self._tables[table], part, number)

    def arrays(self) -> dict[str, ArraySpec]:
        return arrays_of(self._schema)

    @property
    def reader(self) -> Reader[TableRow, Value]:
        return self._reader


@final
class ParquetSource(_TableSource):
    """Rows of Parquet files.

    The value of an item is a dict of its columns: numbers; arrays for lists; str, bytes. A null number is a bad item.

    Parquet has no rows, only row groups, which are compressed and have to be decoded whole. A worker keeps the ones
    that it has decoded, up to `cache_bytes`; rows that are shuffled over more row groups than that have most of them
    decoded again and again, which the report counts. Small row groups (a few thousand rows), a larger cache, or Arrow's
    files (`ArrowSource`), where a row costs nothing but its own bytes, are what to do about it.

    Args:
        paths: a file or several, with the same columns; `{000..146}` stands for all these numbers. URLs of fsspec will
            do.
        columns: names of the columns to read; by default all.
        cache_bytes: memory for decoded row groups in each worker, in bytes.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: a file is not there.
        SourceError: one is no Parquet file, or damaged.
        ValueError: there is no such column, or the files have different ones.
    """

    _kind = "parquet"


@final
class ArrowSource(_TableSource):
    """Rows of Arrow IPC files (`.arrow`, Feather version 2), or of streams in files, as Hugging Face's are.

    The files are mapped into memory, and columns of numbers are read where they lie. The value of an item is that of
    `ParquetSource`. Files that are compressed, or elsewhere (URLs of fsspec), are read a record batch at a time, and
    kept, up to `cache_bytes`.

    Args:
        paths: a file or several, with the same columns; `{000..146}` stands for all these numbers.
        columns: names of the columns to read; by default all.
        cache_bytes: memory for record batches that cannot be mapped in each worker, in bytes.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: a file is not there.
        SourceError: one is no Arrow file, or damaged.
        ValueError: there is no such column, or the files have different ones.
    """

    _kind = "arrow"


# The files.


class _Parts:
    """A file that is open, and its parts.

    Args:
        file: the file.

    Raises:
        SourceError: it is not what it was, or no file of this kind.
    """

    kind: str
    """What such files are called."""

    part_kind: str
    """What their parts are called."""

    def __init__(self, file: FileId) -> None:
        pa = pyarrow()
        self.file = file
        self.handle: OpenFile = open_file(file)  # looks whether it is what it was, and goes on looking
        self.lock = threading.Lock()  # pyarrow's readers of files are not for several threads
        try:
            self.begin(pa)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(file.path, f"it is no {self.kind} file, or damaged ({error})") from error

    def begin(self, pa: Any) -> None:
        """Opens it by pyarrow (`pa`), whose errors are this method's."""
        raise NotImplementedError

    def rows(self) -> list[int]:
        """Rows of each part."""
        raise NotImplementedError

    def schema(self, columns: Sequence[str] | None) -> Any:
        """The schema of some columns, in their order."""
        whole = self.whole_schema
        if columns is None:
            return whole.remove_metadata()
        if missing := [name for name in columns if name not in whole.names]:
            raise ValueError(
                f"{self.file.path}: there is no column {', '.join(map(repr, missing))}, "
                f"only {', '.join(map(repr, whole.names))}"
            )
        return pyarrow().schema([whole.field(name) for name in columns])

    @property
    def whole_schema(self) -> Any:
        """The schema of all columns."""
        raise NotImplementedError

    def part(self, number: int, columns: tuple[str, ...]) -> tuple[Any, int]:
        """A part's columns, as a table or a record batch; and the bytes of memory that they take beside the file."""
        raise NotImplementedError


@final
class _ParquetFile(_Parts):
    kind = "Parquet"
    part_kind = "row group"

    def begin(self, pa: Any) -> None:
        pq = pyarrow("parquet")
        if isinstance(self.handle, RemoteFile):
            self.parquet: Any = pq.ParquetFile(self.handle.open(), pre_buffer=True, page_checksum_verification=True)
        else:
            self.parquet = pq.ParquetFile(self.file.path, memory_map=True, page_checksum_verification=True)

    def rows(self) -> list[int]:
        metadata = self.parquet.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    @property
    def whole_schema(self) -> Any:
        return self.parquet.schema_arrow

    def part(self, number: int, columns: tuple[str, ...]) -> tuple[Any, int]:
        table = self.parquet.read_row_group(number, columns=list(columns), use_threads=False).select(list(columns))
        return table, table.nbytes


@final
class _ArrowFile(_Parts):
    kind = "Arrow"
    part_kind = "record batch"

    def begin(self, pa: Any) -> None:
        ipc = pyarrow("ipc")
        self.mapped = not isinstance(self.handle, RemoteFile)
        source: Any = self.handle.open() if isinstance(self.handle, RemoteFile) else pa.memory_map(self.file.path)
        try:
            reader = ipc.open_file(source)
            self.batches: Any = reader.get_batch
            self.count = int(reader.num_record_batches)
        except pa.ArrowInvalid:
            source.seek(0)
            reader = ipc.open_stream(source)
            # A stream has no table of contents. What is mapped costs nothing to hold, and the rest is held.
            held = list(reader)
            self.batches = held.__getitem__
            self.count = len(held)
        self._schema = reader.schema

    def rows(self) -> list[int]:
        return [self.batches(number).num_rows for number in range(self.count)]

    @property
    def whole_schema(self) -> Any:
        return self._schema

    def part(self, number: int, columns: tuple[str, ...]) -> tuple[Any, int]:
        pa = pyarrow()
        before = pa.total_allocated_bytes()
        batch = self.batches(number).select(list(columns))
        held = not self.mapped or pa.total_allocated_bytes() > before  # compressed ones are not mapped, either
        return batch, batch.nbytes if held else 0


_KINDS: dict[str, type[_Parts]] = {"parquet": _ParquetFile, "arrow": _ArrowFile}


# Reading rows.


@final
class _TableReader(Reader[TableRow, Value]):
    def __init__(self, kind: str, cache_bytes: int) -> None:
        self._kind, self._cache_bytes = kind, cache_bytes
        self._begin()

    def _begin(self) -> None:
        kind = _KINDS[self._kind]
        self._opened: Opened[FileId, _Parts] = Opened(kind)
        self._open_parts = _PartCache(self._cache_bytes, kind.part_kind)

    def take_counts(self) -> dict[str, int] | None:
        return self._open_parts.take_counts()

    def read_rows(self, items: Sequence[TableRow]) -> list[Value | BaseException]:
        # Rows of one part one after the other, so that even a cache for no part decodes each once a call.
        values: list[Value | BaseException] = [{}] * len(items)
        for number, place in sorted(enumerate(self._places(items)), key=lambda each: _order(each[1])):
            if isinstance(place, BaseException):
                values[number] = place
                continue
            parts, (table, part, row) = place
            try:
                columns = self._open_parts.get(parts, table, part)
                values[number] = {name: get(row) for name, get in columns.items()}
            except SourceError as error:
                values[number] = error
            except ValueError as error:
                values[number] = SourceError(f"{table.file.path}: part {part}, row {row}", str(error))
        return values

    def _places(self, items: Sequence[TableRow]) -> list[_Place | SourceError]:
        places: list[_Place | SourceError] = []
        opened: dict[int, _Parts | SourceError] = {}
        for item in items:
            table = item.table
            parts = opened.get(id(table))
            if parts is None:
                try:
                    parts = self._opened[table.file]
                    parts.handle.check()
                except SourceError as error:
                    parts = error
                opened[id(table)] = parts
            if isinstance(parts, SourceError):
                places.append(parts)
            else:
                places.append((parts, item))
        return places


_Place: TypeAlias = tuple[_Parts, TableRow]


def _order(place: _Place | SourceError) -> tuple[str, int, int]:
    return ("", 0, 0) if isinstance(place, SourceError) else (place[1].table.file.path, *place[1][1:])


@final
class _PartCache:
    """Decoded parts of files, up to so many bytes; the last one is kept whatever its size."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[TableFile, int], tuple[Columns, int]] = OrderedDict()
        self._bytes = 0
        self._seen: set[tuple[TableFile, int]] = set()
        self._counts: Counter[str] = Counter()
        self._again = f"{what} decoded again, the cache of {limit:,} bytes being too small for all (cache_bytes)"

    def take_counts(self) -> dict[str, int] | None:
        if not self._counts:
            return None
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    def get(self, parts: _Parts, table: TableFile, part: int) -> Columns:
        key = (table, part)
        if (found := self._find(key)) is not None:
            return found
        pa = pyarrow()
        with parts.lock:
            if (found := self._find(key)) is not None:  # another thread was at it
                return found
            try:
                batch, size = parts.part(part, table.columns)
                batch.validate()  # what does not fit its schema would be read out of bounds
                columns = columns_of(batch)
            except (pa.ArrowException, OSError) as error:
                raise SourceError(f"{table.file.path}: part {part}", f"it cannot be decoded ({error})") from error
            self._keep(key, columns, size)
        return columns

    def _find(self, key: tuple[TableFile, int]) -> Columns | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def _keep(self, key: tuple[TableFile, int], columns: Columns, size: int) -> None:
        with self._lock:
            if size and key in self._seen:
                self._counts[self._again] += 1
            self._seen.add(key)
            self._kept[key] = columns, size
            self._bytes += size
            while self._bytes > self._limit and len(self._kept) > 1:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed
