"""A writer's journal: a head that says who it is, then one row an entry, by which the entry exists.

The head is `magic, length, CRC-32` and that many bytes of JSON. A row is `W` little-endian words of 64 bits:

| word | |
|---|---|
| 0 | generation (16 bits), flags (16), bytes of additional data (32) |
| 1 | key: pass (23 bits), item (40) |
| 2 | slot: which record of the fixed-stride files |
| 3, 4 | where additional data begins in its file, and its checksum |
| 5 … | checksum of each array, as it is on disk |
| … | of each compressed array: where it begins in its file, and its bytes there |
| W - 1 | checksum of the words before, which also depends on the writer and the row's number |

Rows are appended after what they speak of. One whose checksum is wrong does not exist; rows have a fixed size, so those
after it do.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.checksums import row_sums
from hydrax_gpu._cache.descriptor import ArrayFormat, Descriptor, from_json, to_json
from hydrax_gpu._cache.process import Process
from hydrax_gpu.errors import CacheError

__all__ = ["EXTRA_SIZE", "FLAG_EXTRA", "FLAG_PICKLED", "Head", "RowFormat", "Words", "pack_head", "unpack_head"]

Words = npt.NDArray[np.uint64]

_MAGIC = b"hydraxJ\x01"
_PREFIX = struct.Struct("<8sII")
_MAX_HEAD = 1 << 24

EXTRA_SIZE = (1 << 32) - 1
"""Bytes that the additional data of an entry may have."""

FLAG_EXTRA = 1
FLAG_PICKLED = 2


@dataclass(frozen=True)
class Head:
    """Who writes a journal.

    Attributes:
        writer: its name, 16 hexadecimal digits, of which its files' names are made.
        process: it runs in.
        host: the machine's name, for people.
        descriptor: of the cache.
        size: bytes of the head; rows begin there.
    """

    writer: str
    process: Process
    host: str
    descriptor: Descriptor
    size: int = 0


def pack_head(head: Head) -> bytes:
    """The bytes of a head."""
    content = {"writer": head.writer, "process": asdict(head.process), "host": head.host}
    text = json.dumps({**content, "descriptor": to_json(head.descriptor)}).encode()
    return _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text


def unpack_head(start: bytes) -> Head | int | None:
    """Reads a head.

    Returns:
        The head; the number of bytes it takes, when those are fewer; None when there is no head there.
    """
    if len(start) < _PREFIX.size:
        return _PREFIX.size
    magic, length, crc = _PREFIX.unpack_from(start)
    if magic != _MAGIC or length > _MAX_HEAD:
        return None
    size = _PREFIX.size + length
    if len(start) < size:
        return size
    text = start[_PREFIX.size : size]
    if zlib.crc32(text) != crc:
        return None
    try:
        content = cast("dict[str, Any]", json.loads(text))
        descriptor = from_json(content["descriptor"].encode(), "the journal's descriptor")
        return Head(content["writer"], Process(**content["process"]), content["host"], descriptor, size)
    except (ValueError, KeyError, TypeError, CacheError):
        return None


class RowFormat:
    """Where the words of a row are, for entries of given arrays.

    Attributes:
        width: words of a row.
        nbytes: bytes of a row.
        place: for each array the word that has its place and the one after it its size; None for a fixed stride.
    """

    HEAD, KEY, SLOT, EXTRA, EXTRA_SUM, SUMS = range(6)

    def __init__(self, arrays: tuple[ArrayFormat, ...]) -> None:
        word = self.SUMS + len(arrays)
        self.place: list[int | None] = []
        for array in arrays:
            # nothing is nothing, compressed or not
            fixed = array.packed is None or not array.nbytes
            self.place.append(None if fixed else word)
            word += 0 if fixed else 2
        self.width = word + 1
        self.nbytes = 8 * self.width

    def seal(self, rows: Words, first: int, writer: str) -> bytes:
        """The bytes of rows, of which the first is row number `first`; sets their checksums."""
        rows[:, -1] = row_sums(rows[:, :-1], first, int(writer, 16))
        return rows.astype("<u8", copy=False).tobytes()

    def unseal(self, data: bytes | bytearray | memoryview, first: int, writer: str) -> tuple[Words, npt.NDArray[Any]]:
        """The rows of which `data` has all bytes, and which of them are good."""
        count = len(data) // self.nbytes
        rows = np.frombuffer(data, "<u8", count * self.width).reshape(count, self.width).astype(np.uint64, copy=False)
        return rows, rows[:, -1] == row_sums(rows[:, :-1], first, int(writer, 16))


def generations(rows: Words) -> npt.NDArray[np.int64]:
    """Generation of each row: how often the entry was found bad and written anew."""
    return (rows[:, RowFormat.HEAD] >> np.uint64(48)).astype(np.int64)
