"""`TFRecordSource` and `ArrayRecordSource`: files of records that are bytes."""

from __future__ import annotations

import importlib
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, NamedTuple, TypeAlias, cast, final

import numpy as np

from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._files import FileId, LocalFile, Opened, OpenFile, RemoteFile, identify, is_remote, open_file
from hydrax_gpu.sources._files import ranges as read_ranges
from hydrax_gpu.sources._sidecar import Index, indexed
from hydrax_gpu.sources._source import Parts, Reader, Row, Source
from hydrax_gpu.sources._tar import expand

__all__ = ["ArrayRecordSource", "Record", "TFRecordSource", "masked_crc32c"]

Path: TypeAlias = "str | os.PathLike[str]"

_VERSION = 1
_HEAD, _FOOT = 12, 4
"""Bytes before a record (its length in 8, their checksum in 4) and behind it (its checksum)."""


class Record(NamedTuple):
    """Descriptor of a record.

    Attributes:
        file: the file that it lies in.
        offset: of its first byte.
        size: bytes.
    """

    file: FileId
    offset: int
    size: int


@final
class TFRecordSource(Source[Record, bytes]):
    """Records of TFRecord files, in any order. The value of an item is the record's bytes.

    A TFRecord file has no table of contents, so each file is gone through once, from record to record, and the places
    are kept beside it. The checksums (CRC-32C) of the lengths are checked then, and that of a record when it is read,
    by the package google-crc32c; without it records go unchecked, which the report says.

    Args:
        paths: a file or several; `{000..146}` stands for all these numbers. URLs of fsspec will do.
        index_folder: where the indexes are kept; by default beside the files, and for remote ones nowhere.

    Raises:
        OSError: a file is not there.
        SourceError: one is no TFRecord file, or is compressed or damaged.
    """

    def __init__(self, paths: Path | Iterable[Path], *, index_folder: Path | None = None) -> None:
        self._reader = _TFRecordReader()
        self._files = [identify(path) for path in expand(paths)]
        indexes: list[Index] = [indexed(file, "tfrecord", _VERSION, _index, index_folder) for file in self._files]
        self._offsets = [index["offsets"] for index in indexes]  # of each record, and the end of the last one's foot
        counts = [len(offsets) - 1 for offsets in self._offsets]
        self._places = Parts(counts)
        if not len(self):
            raise SourceError(self._files[0].path, f"got no record in {len(counts)} files, wanted at least one")

    @property
    def reader(self) -> Reader[Record, bytes]:
        return self._reader

    def __len__(self) -> int:
        return self._places.total

    def descriptor(self, index: int) -> Record:
        part, number = self._places.find(index)
        begin, end = self._offsets[part][number : number + 2].tolist()
        return Record(self._files[part], begin, end - begin - _HEAD - _FOOT)

    def __repr__(self) -> str:
        return f"TFRecordSource({len(self)} records in {len(self._files)} files)"


def _index(file: FileId) -> Index:
    handle = open_file(file)
    if isinstance(handle, RemoteFile):
        stream = cast("IO[bytes]", handle.open())
    else:
        stream = open(file.path, "rb", buffering=1 << 16)  # noqa: SIM115
    offsets: list[int] = []
    position = 0
    with stream:
        while head := stream.read(_HEAD):
            length, checksum = struct.unpack("<QI", head) if len(head) == _HEAD else (0, 0)
            if len(head) < _HEAD or masked_crc32c(head[:8]) != checksum:
                raise SourceError(file.path, _what_is_wrong(position, head))
            offsets.append(position + _HEAD)
            position += _HEAD + length + _FOOT
            if position > file.size:
                raise SourceError(
                    file.path,
                    f"it is truncated: its last record, {len(offsets) - 1}, ends at byte {position:,} of {file.size:,}",
                )
            stream.seek(position)
    handle.check()
    return {"offsets": np.array([*offsets, position + _HEAD], np.int64)}


def _what_is_wrong(position: int, head: bytes) -> str:
    if position == 0:
        if head.startswith((b"\x1f\x8b", b"\x78")):
            return "it is compressed, so that no record can be had alone: write it without compression"
        return "it is no TFRecord file: its first length does not have the checksum that it should"
    return f"the length at byte {position:,} is damaged, and with it whatever is behind it"


@cache
def _table() -> list[int]:
    table: list[int] = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


def _crc32c_of_few(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4) of a few bytes: 0.1 µs each."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 255] ^ value >> 8
    return value ^ 0xFFFFFFFF


@cache
def _crc32c() -> Callable[[bytes], int] | None:
    try:
        return cast("Callable[[bytes], int]", importlib.import_module("google_crc32c").value)
    except ImportError:
        return None


def masked_crc32c(data: bytes, crc32c: Callable[[bytes], int] = _crc32c_of_few) -> int:
    """The checksum of TFRecord files: CRC-32C, turned right by 15 bits and with a constant added (TensorFlow's
    `core/lib/hash/crc32c.h`), so that the checksum of data that holds checksums is not a special one."""
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


@final
class _TFRecordReader(Reader[Record, bytes]):
    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._opened: Opened[FileId, OpenFile] = Opened(open_file)
        self._open_lock = threading.Lock()
        self._open_counts: Counter[str] = Counter()

    def take_counts(self) -> dict[str, int] | None:
        if not self._open_counts:
            return None
        with self._open_lock:
            counts, self._open_counts = self._open_counts, Counter[str]()
        return dict(counts)

    def read_rows(self, items: Sequence[Record]) -> list[bytes | BaseException]:
        crc32c = _crc32c()
        parts = read_ranges(self._opened, [(item.file, item.offset, item.size + _FOOT) for item in items])
        if crc32c is None:
            with self._open_lock:
                self._open_counts["TFRecord not checked, for google-crc32c is not installed"] += len(items)
        values: list[bytes | BaseException] = []
        for item, part in zip(items, parts, strict=True):
            if isinstance(part, BaseException):
                values.append(part)
                continue
            data = part[:-_FOOT]
            if crc32c is not None and masked_crc32c(data, crc32c) != int.from_bytes(part[-_FOOT:], "little"):
                values.append(SourceError(f"{item.file.path}: record at {item.offset:,}", "its checksum is wrong"))
            else:
                values.append(data)
        return values


@dataclass(frozen=True, slots=True, repr=False)
class ArrayRecordFile:
    """An ArrayRecord file."""

    file: FileId

    def __repr__(self) -> str:
        return self.file.path


@final
class ArrayRecordSource(Source[Row, bytes]):
    """Records of ArrayRecord files, by the package array-record. The value of an item is the record's bytes.

    Args:
        paths: a file or several; `{000..146}` stands for all these numbers.

    Raises:
        ImportError: array-record is not installed.
        OSError: a file is not there.
        SourceError: one is no ArrayRecord file, or damaged.
    """

    def __init__(self, paths: Path | Iterable[Path]) -> None:
        _array_record()
        self._reader = _ArrayRecordReader()
        self._files = [ArrayRecordFile(identify(path)) for path in expand(paths)]
        for each in self._files:
            if is_remote(each.file.path):
                raise ValueError(f"{each}: ArrayRecord's own package reads files of this machine alone: copy it here")
        counts = [_OpenRecords(each).count for each in self._files]
        self._places = Parts(counts)
        if not len(self):
            raise SourceError(str(self._files[0]), f"got no record in {len(counts)} files, wanted at least one")

    @property
    def reader(self) -> Reader[Row, bytes]:
        return self._reader

    def __len__(self) -> int:
        return self._places.total

    def descriptor(self, index: int) -> Row:
        part, number = self._places.find(index)
        return Row(self._files[part], number)

    def __repr__(self) -> str:
        return f"ArrayRecordSource({len(self)} records in {len(self._files)} files)"


def _array_record() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise ImportError(
            f"array-record cannot be imported ({error}): pip install 'hydrax-gpu[arrayrecord]'"
        ) from error


@final
class _OpenRecords:
    def __init__(self, table: ArrayRecordFile) -> None:
        self.handle = LocalFile(table.file)
        self.lock = threading.Lock()
        self.reader: Any = None
        try:
            # every record alone, so nothing is to be read ahead
            self.reader = _array_record().ArrayRecordReader(
                table.file.path, options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15
            )
            self.count = int(self.reader.num_records())
        except Exception as error:  # it raises what its C++ tells
            raise SourceError(table.file.path, f"it is no ArrayRecord file, or damaged ({error})") from error

    def __del__(self) -> None:
        if self.reader is not None:
            self.reader.close()

    def read(self, numbers: list[int]) -> list[bytes]:
        with self.lock:
            return self.reader.read(numbers)


@final
class _ArrayRecordReader(Reader[Row, bytes]):
    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._opened: Opened[ArrayRecordFile, _OpenRecords] = Opened(_OpenRecords)

    def read_rows(self, items: Sequence[Row]) -> list[bytes | BaseException]:
        values: list[bytes | BaseException] = [b""] * len(items)
        places: dict[ArrayRecordFile, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(item.table, []).append(place)
        for table, own in places.items():
            for place, value in zip(own, self._of(table, [items[place].number for place in own]), strict=True):
                values[place] = value
        return values

    def _of(self, table: ArrayRecordFile, numbers: list[int]) -> list[bytes | BaseException]:
        try:
            records = self._opened[table]
            records.handle.check()
            return [*records.read(numbers)]
        except SourceError as error:
            return [error] * len(numbers)
        except Exception as error:
            if len(numbers) == 1:
                return [SourceError(f"{table}: record {numbers[0]}", str(error))]
        return [self._of(table, [number])[0] for number in numbers]
