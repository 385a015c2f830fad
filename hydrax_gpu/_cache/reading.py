"""Reads records where they are wanted, and checks each of them while it is still in the processor's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.bulk import OFFSET, SEED, SIZE, SUM, TARGET, WORDS, Bulk, Done, Span
from hydrax_gpu._cache.checksums import Digest
from hydrax_gpu._cache.files import Files
from hydrax_gpu._cache.journal import Words
from hydrax_gpu._cache.planner import GAP, LIMIT, Read, plan
from hydrax_gpu._cache.system import System

__all__ = ["Reader", "Records", "address_of", "as_bytes"]

_Int64s = npt.NDArray[np.int64]

_BLOCK = 1 << 20
"""Bytes of one read of records that lie behind one another. More than `LIMIT`, as there is nothing else to do between
two reads: these bytes are in a cache when they are checked, if not in that of the second level, and calls are few."""

_SPAN = Span(GAP, LIMIT, _BLOCK)


class Records:
    """Where records of one file are, and where they go.

    Args:
        offsets: int64, in the file.
        sizes: int64, in bytes; or one number for all of them.
        targets: int64, in memory.
        sums: uint64, checksums.
        seeds: uint64, of the checksums.

    Attributes:
        table: all of that, as `Bulk.read` takes it: int64, shape `(WORDS, n)`.
        size: of every record, where one was given.
    """

    __slots__ = ("size", "table")

    def __init__(self, offsets: _Int64s, sizes: _Int64s | int, targets: _Int64s, sums: Words, seeds: Words) -> None:
        self.table = table = np.empty((WORDS, len(offsets)), np.int64)
        self.size = sizes if isinstance(sizes, int) else None
        table[OFFSET] = offsets
        table[SIZE] = sizes
        table[TARGET] = targets
        unsigned = table.view(np.uint64)
        unsigned[SUM] = sums
        unsigned[SEED] = seeds

    def __len__(self) -> int:
        return self.table.shape[1]

    @property
    def sums(self) -> list[int]:
        """Checksums."""
        return self.table[SUM].view(np.uint64).tolist()

    @property
    def seeds(self) -> list[int]:
        """Of the checksums."""
        return self.table[SEED].view(np.uint64).tolist()


class Reader:
    """Reads for one call.

    Args:
        files: of the cache.
        system: whose `read` is used.
        digest: makes checksums.
        bulk: reads and checks in place of both, if the system's calls are the usual ones.

    Attributes:
        nbytes: bytes read.
        calls: reads made.
        errors: of the operating system.
    """

    def __init__(self, files: Files, system: System, digest: Digest, bulk: Bulk | None = None) -> None:
        self.nbytes = 0
        self.calls = 0
        self.errors: list[OSError] = []
        self._files = files
        self._system = system
        self._digest = digest
        self._bulk = bulk if type(system).read is System.read else None
        self._waste = bytearray(0)

    def read(
        self,
        name: str,
        records: Records,
        memory: memoryview,
        failed: Callable[[int, str], None],
        status: Callable[[os.stat_result], None] | None = None,
    ) -> None:
        """Reads records of a file into memory.

        Args:
            name: of the file.
            records: what to read.
            memory: where `targets` are.
            failed: called with the number of a record that is not good, and why; perhaps several times for one.
            status: called with what `os.fstat` says of the file before it is read.
        """
        try:
            with self._files.opened(name) as fd:
                if status is not None:
                    status(os.fstat(fd))
                if self._bulk is not None:
                    self._together(self._bulk, fd, records, memory, failed)
                elif straight(records):
                    self._straight(fd, records, memory, failed)
                else:
                    self._planned(fd, records, memory, failed)
        except OSError as error:
            self._refused(name, error, np.flatnonzero(records.table[SIZE]).tolist(), failed)

    @property
    def bulk(self) -> bool:
        """Whether `read_rows` can be called."""
        return self._bulk is not None

    def read_rows(
        self,
        name: str,
        rows: Words,
        keys: _Int64s,
        into: _Int64s | None,
        array: tuple[int, int],
        memory: memoryview,
        failed: Callable[[int, str], None],
    ) -> None:
        """Reads one array of entries of one writer; see `Bulk.read_rows`, and for the rest `read`."""
        assert self._bulk is not None
        try:
            entry = self._files.take(name)
            try:
                done = self._bulk.read_rows(entry[0], address_of(memory), rows, keys, into, array, _SPAN)
            finally:
                self._files.give(name, entry)
        except OSError as error:
            self._refused(name, error, range(len(rows)), failed)
        else:
            self._judge(done, failed)

    def _together(
        self, bulk: Bulk, fd: int, records: Records, memory: memoryview, failed: Callable[[int, str], None]
    ) -> None:
        self._judge(bulk.read(fd, address_of(memory), records.table, _SPAN), failed)

    def _judge(self, done: Done, failed: Callable[[int, str], None]) -> None:
        self.nbytes += done.nbytes
        self.calls += done.calls
        if done.bad:
            for record in np.flatnonzero(done.verdicts).tolist():
                failed(record, _reason(done.verdicts[record] == 1))

    def _refused(self, name: str, error: OSError, records: Iterable[int], failed: Callable[[int, str], None]) -> None:
        self.errors.append(error)
        for record in records:
            failed(record, f"{name}: {error.strerror or error}")

    def _straight(self, fd: int, records: Records, memory: memoryview, failed: Callable[[int, str], None]) -> None:
        """Reads records of one size that lie behind one another in the file as well as in memory."""
        size, count = cast("int", records.size), len(records)
        offset, target = int(records.table[OFFSET, 0]), int(records.table[TARGET, 0])
        memory = memory[target : target + count * size]
        digest, sums = self._digest, iter(zip(records.sums, records.seeds, strict=True))
        step = _BLOCK // size * size
        for begin in range(0, count * size, step):
            part = memory[begin : begin + step]
            nbytes = len(part)
            got = self._fill(fd, [part], offset + begin, nbytes)
            for start, (expected, seed) in zip(range(0, nbytes, size), sums, strict=False):
                whole = start + size <= got
                if not whole or digest(part[start : start + size], seed) != expected:
                    failed((begin + start) // size, _reason(whole))

    def _planned(self, fd: int, records: Records, memory: memoryview, failed: Callable[[int, str], None]) -> None:
        offsets, sizes, targets = records.table[[OFFSET, SIZE, TARGET]].tolist()
        sums, seeds = records.sums, records.seeds
        for read in plan(offsets, sizes, targets, gap=GAP, limit=LIMIT):
            if read.nbytes > LIMIT and len(read.records) == 1:
                (record,) = read.records
                begin, end = targets[record], targets[record] + sizes[record]
                self._large(fd, read, (sums[record], seeds[record]), memory[begin:end], failed)
                continue
            got = self._small(fd, read, memory)
            for record in read.records:
                begin, end = targets[record], targets[record] + sizes[record]
                whole = offsets[record] + sizes[record] <= read.offset + got
                if not whole or self._digest(memory[begin:end], seeds[record]) != sums[record]:
                    failed(record, _reason(whole))

    def _small(self, fd: int, read: Read, memory: memoryview) -> int:
        buffers: list[Any] = []
        for target, nbytes in read.pieces:
            if target < 0:
                if len(self._waste) < nbytes:
                    self._waste = bytearray(nbytes)
                buffers.append(memoryview(self._waste)[:nbytes])
            else:
                buffers.append(memory[target : target + nbytes])
        return self._fill(fd, buffers, read.offset, read.nbytes)

    def _large(
        self, fd: int, read: Read, check: tuple[int, int], memory: memoryview, failed: Callable[[int, str], None]
    ) -> None:
        from xxhash import xxh3_64

        (record,), size = read.records, len(memory)
        expected, seed = check
        state = xxh3_64(seed=seed)
        for start in range(0, size, LIMIT):
            part = memory[start : start + LIMIT]
            if self._fill(fd, [part], read.offset + start, len(part)) < len(part):
                failed(record, _reason(whole=False))
                return
            state.update(part)
        if state.intdigest() != expected:
            failed(record, _reason(whole=True))

    def _fill(self, fd: int, buffers: Sequence[Any], offset: int, nbytes: int) -> int:
        done = self._system.read(fd, buffers, offset, nbytes)
        self.calls += 1
        self.nbytes += done
        return done


def straight(records: Records) -> bool:
    """Whether records are of one size, not large, and lie behind one another in the file as well as in memory."""
    size, offsets, targets = records.size, records.table[OFFSET], records.table[TARGET]
    if size is None or not 0 < size <= LIMIT or not len(offsets):
        return False
    span = (len(offsets) - 1) * size
    if offsets[-1] - offsets[0] != span or targets[-1] - targets[0] != span:
        return False
    return bool((offsets[1:] - offsets[:-1] == size).all() and (targets[1:] - targets[:-1] == size).all())


def address_of(memory: memoryview) -> int:
    """Where bytes are in memory; 0 for none."""
    return np.frombuffer(memory, np.uint8).__array_interface__["data"][0] if memory.nbytes else 0


def _reason(whole: bool) -> str:
    return "its checksum is wrong" if whole else "its file ends before it"


def as_bytes(view: npt.NDArray[Any], nbytes: int, name: str) -> memoryview:
    """The bytes of `n` rows of `nbytes` each.

    Raises:
        ValueError: they are not rows of so many bytes, without gaps.
    """
    if view.ndim < 1 or view.nbytes != len(view) * nbytes or not view.flags.c_contiguous:
        raise ValueError(
            f"array {name!r} must be rows of {nbytes} bytes each, C-contiguous; got shape {view.shape}, dtype "
            f"{view.dtype}, strides {view.strides}."
        )
    return memoryview(cast("Any", view.reshape(-1).view(np.uint8))) if view.nbytes else memoryview(b"")
