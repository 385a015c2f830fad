"""Reads records where they are wanted, and checks each of them while it is still in the processor's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.checksums import Digest
from hydrax_gpu._cache.files import Files
from hydrax_gpu._cache.planner import LIMIT, Read, plan
from hydrax_gpu._cache.system import System

__all__ = ["Reader", "Records"]

_Int64s = npt.NDArray[np.int64]

_BLOCK = 1 << 20
"""Bytes of one read of records that lie behind one another. More than `LIMIT`, as there is nothing else to do between
two reads: these bytes are in a cache when they are checked, if not in that of the second level, and calls are few."""


class Records:
    """Where records of one file are, and where they go; each array has one element a record.

    Attributes:
        offsets: int64, in the file.
        sizes: int64, in bytes; or one number for all of them.
        targets: int64, in memory.
        sums: checksums.
        seeds: of the checksums.
    """

    __slots__ = ("offsets", "seeds", "sizes", "sums", "targets")

    def __init__(
        self, offsets: _Int64s, sizes: _Int64s | int, targets: _Int64s, sums: list[int], seeds: list[int]
    ) -> None:
        self.offsets = offsets
        self.sizes = sizes
        self.targets = targets
        self.sums = sums
        self.seeds = seeds


class Reader:
    """Reads for one call.

    Attributes:
        nbytes: bytes read.
        calls: reads made.
        errors: of the operating system.
    """

    def __init__(self, files: Files, system: System, digest: Digest) -> None:
        self.nbytes = 0
        self.calls = 0
        self.errors: list[OSError] = []
        self._files = files
        self._system = system
        self._digest = digest
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
                if straight(records):
                    self._straight(fd, records, memory, failed)
                else:
                    self._planned(fd, records, memory, failed)
        except OSError as error:
            self.errors.append(error)
            for record in range(len(records.offsets)):
                if records.sizes if isinstance(records.sizes, int) else records.sizes[record]:
                    failed(record, f"{name}: {error.strerror or error}")

    def _straight(self, fd: int, records: Records, memory: memoryview, failed: Callable[[int, str], None]) -> None:
        """Reads records of one size that lie behind one another in the file as well as in memory."""
        size, count = cast("int", records.sizes), len(records.offsets)
        offset, target = int(records.offsets[0]), int(records.targets[0])
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
        offsets, targets = records.offsets.tolist(), records.targets.tolist()
        sizes = [records.sizes] * len(offsets) if isinstance(records.sizes, int) else records.sizes.tolist()
        for read in plan(offsets, sizes, targets):
            if read.nbytes > LIMIT and len(read.records) == 1:
                (record,) = read.records
                begin, end = targets[record], targets[record] + sizes[record]
                self._large(fd, read, records, memory[begin:end], failed)
                continue
            got = self._small(fd, read, memory)
            for record in read.records:
                begin, end = targets[record], targets[record] + sizes[record]
                whole = offsets[record] + sizes[record] <= read.offset + got
                if not whole or self._digest(memory[begin:end], records.seeds[record]) != records.sums[record]:
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
        self, fd: int, read: Read, records: Records, memory: memoryview, failed: Callable[[int, str], None]
    ) -> None:
        from xxhash import xxh3_64

        (record,), size = read.records, len(memory)
        state = xxh3_64(seed=records.seeds[record])
        for start in range(0, size, LIMIT):
            part = memory[start : start + LIMIT]
            if self._fill(fd, [part], read.offset + start, len(part)) < len(part):
                failed(record, _reason(whole=False))
                return
            state.update(part)
        if state.intdigest() != records.sums[record]:
            failed(record, _reason(whole=True))

    def _fill(self, fd: int, buffers: Sequence[Any], offset: int, nbytes: int) -> int:
        done = self._system.read(fd, buffers, offset, nbytes)
        self.calls += 1
        self.nbytes += done
        return done


def straight(records: Records) -> bool:
    """Whether records are of one size, not large, and lie behind one another in the file as well as in memory."""
    size, offsets, targets = records.sizes, records.offsets, records.targets
    if not isinstance(size, int) or not 0 < size <= LIMIT or not len(offsets):
        return False
    span = (len(offsets) - 1) * size
    if offsets[-1] - offsets[0] != span or targets[-1] - targets[0] != span:
        return False
    return bool((offsets[1:] - offsets[:-1] == size).all() and (targets[1:] - targets[:-1] == size).all())


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
