"""Entries of one writer: where their parts are on disk, and reading them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import checksums
from hydrax_gpu._cache.compression import decompressor
from hydrax_gpu._cache.descriptor import ArrayFormat
from hydrax_gpu._cache.journal import EXTRA_SIZE, FLAG_EXTRA, FLAG_PICKLED, RowFormat, Words
from hydrax_gpu._cache.peers import EXTRA, data_file
from hydrax_gpu._cache.reading import Reader, Records

__all__ = ["Entries", "Failed"]

_Int64s = npt.NDArray[np.int64]
Failed = Callable[[int, str], None]
"""Called with the number of an entry that is not good, and why; perhaps several times for one."""


class Entries:
    """`n` entries that one writer has written.

    Attributes:
        extra_file: name of the file with their additional data.
    """

    def __init__(
        self,
        arrays: Sequence[ArrayFormat],
        format: RowFormat,
        reader: Reader,
        writer: str,
        keys: npt.NDArray[np.int64],
        rows: Words,
    ) -> None:
        self._arrays = arrays
        self._format = format
        self._reader = reader
        self._writer = writer
        self._keys = keys
        self._rows = rows
        self.extra_file = writer + EXTRA

    @property
    def pickled(self) -> bool:
        """Whether there are pickled values in it."""
        return bool((self._flags() & np.uint64(FLAG_PICKLED)).any())

    def read_rows(self, position: int, offsets: _Int64s | None, memory: memoryview, failed: Failed) -> None:
        """Reads array number `position` of each entry into row `offsets[entry]` of memory, or row `entry`."""
        array = self._arrays[position]
        nbytes = array.nbytes
        if self._reader.bulk and self._format.place[position] is None:
            if nbytes:
                name, named = data_file(self._writer, position), _named(position, failed)
                self._reader.read_rows(name, self._rows, self._keys, offsets, (position, nbytes), memory, named)
            return
        if offsets is None:
            offsets = np.arange(len(self._rows))
        if array.packed is None or not nbytes:
            self._read(position, offsets * nbytes, memory, failed)
            return
        bad: set[int] = set()

        def noted(entry: int, reason: str) -> None:
            bad.add(entry)
            failed(entry, reason)

        expand = decompressor(array.packed)
        for entry, data in enumerate(self.stored(position, noted)):
            if entry in bad:
                continue
            row = int(offsets[entry])
            try:
                memory[row * nbytes : (row + 1) * nbytes] = expand(data, nbytes)
            except Exception as error:
                # what the package raises for bytes that are not its own
                failed(entry, f"array {position}: {array.compression}: {error}")

    def stored(self, position: int, failed: Failed) -> list[memoryview]:
        """Array number `position` of each entry, as it is on disk."""
        sizes = self._sizes(position)
        ends, memory = _behind_one_another(np.full(len(self._rows), sizes, np.int64))
        self._read(position, ends - sizes, memory, failed)
        begins: list[int] = (ends - sizes).tolist()
        return [memory[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True)]

    def extras(
        self, failed: Failed, status: Callable[[os.stat_result], None] | None = None
    ) -> Iterator[tuple[int, memoryview, bool]]:
        """Additional data of the entries that have some and are good: `(entry, bytes, pickled)`.

        Args:
            failed: see `Failed`.
            status: called with what `os.fstat` says of the file before it is read.
        """
        flags = self._flags()
        having = np.flatnonzero(flags & np.uint64(FLAG_EXTRA))
        if not len(having):
            return
        rows, entries = self._rows[having], having.tolist()
        sizes = (rows[:, RowFormat.HEAD] & np.uint64(EXTRA_SIZE)).astype(np.int64)
        ends, memory = _behind_one_another(sizes)
        sums = rows[:, RowFormat.EXTRA_SUM]
        seeds = checksums.seeds(self._keys[having], checksums.EXTRA)
        bad: set[int] = set()

        def noted(record: int, reason: str) -> None:
            bad.add(record)
            failed(entries[record], f"additional data: {reason}")

        records = Records(rows[:, RowFormat.EXTRA].astype(np.int64), sizes, ends - sizes, sums, seeds)
        self._reader.read(self.extra_file, records, memory, noted, status)
        begins: list[int] = (ends - sizes).tolist()
        for record, (begin, end) in enumerate(zip(begins, ends.tolist(), strict=True)):
            if record not in bad:
                pickled = bool(flags[entries[record]] & np.uint64(FLAG_PICKLED))
                yield entries[record], memory[begin:end], pickled

    def _sizes(self, position: int) -> _Int64s | int:
        place = self._format.place[position]
        return self._arrays[position].nbytes if place is None else self._rows[:, place + 1].astype(np.int64)

    def _read(self, position: int, targets: _Int64s, memory: memoryview, failed: Failed) -> None:
        rows, place, nbytes = self._rows, self._format.place[position], self._arrays[position].nbytes
        offsets = (
            rows[:, RowFormat.SLOT].astype(np.int64) * nbytes if place is None else rows[:, place].astype(np.int64)
        )
        sums = rows[:, RowFormat.SUMS + position]
        seeds = checksums.seeds(self._keys, position)
        records = Records(offsets, self._sizes(position), targets, sums, seeds)
        self._reader.read(data_file(self._writer, position), records, memory, _named(position, failed))

    def _flags(self) -> npt.NDArray[np.uint64]:
        return self._rows[:, RowFormat.HEAD] >> np.uint64(32) & np.uint64(0xFFFF)


def _named(position: int, failed: Failed) -> Failed:
    return lambda record, reason: failed(record, f"array {position}: {reason}")


def _behind_one_another(sizes: _Int64s) -> tuple[_Int64s, memoryview]:
    """Where records of these sizes end when each begins where the one before it ends, and memory for them."""
    ends = np.cumsum(sizes, dtype=np.int64)
    return ends, memoryview(bytearray(int(ends[-1]) if len(ends) else 0))
