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

Failed = Callable[[int, str], None]
"""Called with the number of an entry that is not good, and why; perhaps several times for one."""


class Entries:
    """`n` entries that one writer has written.

    Attributes:
        extra_file: name of the file with their additional data.
        pickled: whether there are pickled values in it.
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
        self._flags = rows[:, RowFormat.HEAD] >> np.uint64(32) & np.uint64(0xFFFF)
        self.extra_file = writer + EXTRA
        self.pickled = bool((self._flags & np.uint64(FLAG_PICKLED)).any())

    def read_rows(self, position: int, offsets: npt.NDArray[np.int64], memory: memoryview, failed: Failed) -> None:
        """Reads array number `position` of each entry into row `offsets[entry]` of memory."""
        array = self._arrays[position]
        nbytes = array.nbytes
        if array.compression is None or not nbytes:
            self._read(position, (offsets * nbytes).tolist(), memory, failed)
            return
        bad: set[int] = set()

        def noted(entry: int, reason: str) -> None:
            bad.add(entry)
            failed(entry, reason)

        expand = decompressor(array.compression)
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
        targets, memory = _behind_one_another(sizes)
        self._read(position, targets, memory, failed)
        return [memory[target : target + size] for target, size in zip(targets, sizes, strict=True)]

    def extras(
        self, failed: Failed, status: Callable[[os.stat_result], None] | None = None
    ) -> Iterator[tuple[int, memoryview, bool]]:
        """Additional data of the entries that have some and are good: `(entry, bytes, pickled)`.

        Args:
            failed: see `Failed`.
            status: called with what `os.fstat` says of the file before it is read.
        """
        having = np.flatnonzero(self._flags & np.uint64(FLAG_EXTRA))
        if not len(having):
            return
        rows, entries = self._rows[having], having.tolist()
        sizes: list[int] = (rows[:, RowFormat.HEAD] & np.uint64(EXTRA_SIZE)).tolist()
        targets, memory = _behind_one_another(sizes)
        sums = rows[:, RowFormat.EXTRA_SUM].tolist()
        seeds = checksums.seeds(self._keys[having], checksums.EXTRA).tolist()
        bad: set[int] = set()

        def noted(record: int, reason: str) -> None:
            bad.add(record)
            failed(entries[record], f"additional data: {reason}")

        records = Records(rows[:, RowFormat.EXTRA].tolist(), sizes, targets, sums, seeds)
        self._reader.read(self.extra_file, records, memory, noted, status)
        for record, (target, size) in enumerate(zip(targets, sizes, strict=True)):
            if record not in bad:
                pickled = bool(self._flags[entries[record]] & np.uint64(FLAG_PICKLED))
                yield entries[record], memory[target : target + size], pickled

    def _sizes(self, position: int) -> list[int]:
        place = self._format.place[position]
        if place is None:
            return [self._arrays[position].nbytes] * len(self._rows)
        return self._rows[:, place + 1].tolist()

    def _read(self, position: int, targets: list[int], memory: memoryview, failed: Failed) -> None:
        rows, place, nbytes = self._rows, self._format.place[position], self._arrays[position].nbytes
        offsets = (rows[:, RowFormat.SLOT] * np.uint64(nbytes) if place is None else rows[:, place]).tolist()
        sums = rows[:, RowFormat.SUMS + position].tolist()
        seeds = checksums.seeds(self._keys, position).tolist()

        def named(record: int, reason: str) -> None:
            failed(record, f"array {position}: {reason}")

        records = Records(offsets, self._sizes(position), targets, sums, seeds)
        self._reader.read(data_file(self._writer, position), records, memory, named)


def _behind_one_another(sizes: list[int]) -> tuple[list[int], memoryview]:
    ends = np.cumsum(sizes, dtype=np.int64)
    return (ends - sizes).tolist(), memoryview(bytearray(int(ends[-1]) if len(ends) else 0))
