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


class Records:
    """Where records of one file are, and where they go; each list has one element a record."""

    __slots__ = ("offsets", "seeds", "sizes", "sums", "targets")

    def __init__(
        self, offsets: list[int], sizes: list[int], targets: list[int], sums: list[int], seeds: list[int]
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
                for read in plan(records.offsets, records.sizes, records.targets):
                    if read.nbytes > LIMIT and len(read.records) == 1:
                        self._large(fd, read, records, memory, failed)
                    else:
                        self._small(fd, read, records, memory, failed)
        except OSError as error:
            self.errors.append(error)
            for record, size in enumerate(records.sizes):
                if size:
                    failed(record, f"{name}: {error.strerror or error}")

    def _small(
        self, fd: int, read: Read, records: Records, memory: memoryview, failed: Callable[[int, str], None]
    ) -> None:
        buffers: list[Any] = []
        for target, nbytes in read.pieces:
            if target < 0:
                if len(self._waste) < nbytes:
                    self._waste = bytearray(nbytes)
                buffers.append(memoryview(self._waste)[:nbytes])
            else:
                buffers.append(memory[target : target + nbytes])
        got = self._fill(fd, buffers, read.offset, read.nbytes)
        digest, sizes, targets = self._digest, records.sizes, records.targets
        sums, seeds = records.sums, records.seeds
        if got < read.nbytes:
            for record in read.records:
                if records.offsets[record] + sizes[record] > read.offset + got:
                    failed(record, "its file ends before it")
        for record in read.records:
            target = targets[record]
            if digest(memory[target : target + sizes[record]], seeds[record]) != sums[record]:
                failed(record, "its checksum is wrong")

    def _large(
        self, fd: int, read: Read, records: Records, memory: memoryview, failed: Callable[[int, str], None]
    ) -> None:
        from xxhash import xxh3_64

        (record,) = read.records
        target, size = records.targets[record], records.sizes[record]
        state = xxh3_64(seed=records.seeds[record])
        for start in range(0, size, LIMIT):
            part = memory[target + start : target + min(start + LIMIT, size)]
            if self._fill(fd, [part], read.offset + start, len(part)) < len(part):
                failed(record, "its file ends before it")
                return
            state.update(part)
        if state.intdigest() != records.sums[record]:
            failed(record, "its checksum is wrong")

    def _fill(self, fd: int, buffers: Sequence[Any], offset: int, nbytes: int) -> int:
        done = self._system.read(fd, buffers, offset, nbytes)
        self.calls += 1
        self.nbytes += done
        return done


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
