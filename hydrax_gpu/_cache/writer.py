"""The files of one writer, which nobody else writes to."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.claims import pack_claim
from hydrax_gpu._cache.descriptor import Descriptor
from hydrax_gpu._cache.journal import Head, RowFormat, Words, pack_head
from hydrax_gpu._cache.peers import CLAIM, EXTRA, JOURNAL, data_file
from hydrax_gpu._cache.process import Process
from hydrax_gpu._cache.system import System

__all__ = ["Record", "Writer", "joined", "new_name", "rows_of"]

Record = Sequence[Any]
"""Buffers of one record, one for each array."""


def new_name() -> str:
    """A name that no writer has had."""
    return secrets.token_hex(8)


class Writer:
    """Appends records to files of its own. Not for several threads at a time.

    Attributes:
        name: of the writer.
        head_size: bytes before the journal's first row.
        written: bytes written so far.
    """

    def __init__(self, location: str, name: str, descriptor: Descriptor, process: Process, system: System) -> None:
        self.name = name
        self.written = 0
        self._path = os.path.join(location, name)
        self._format = RowFormat(descriptor.arrays)
        self._arrays = descriptor.arrays
        self._system = system
        self._fds: dict[str, int] = {}
        # one that is dropped without `close` leaves no descriptors behind
        weakref.finalize(self, _close_all, self._fds, system).atexit = False
        self._sync = not process.place or not is_local(location)
        self._claims = 0
        self._slot = 0
        self._row = 0
        self._ends = [0] * (len(descriptor.arrays) + 1)  # of the files of compressed arrays; of additional data last
        try:
            head = pack_head(Head(name, process, socket.gethostname(), descriptor))
            self.head_size = len(head)
            self._put(JOURNAL, [head], 0)
            self._put(CLAIM, [pack_claim(np.empty(0, np.int64), 0)], 0)
        except BaseException:
            self.close()
            raise

    def claim(self, keys: npt.NDArray[np.int64]) -> None:
        """Announces what is about to be written, in place of what was announced before."""
        self._claims += 1
        self._put(CLAIM, [pack_claim(keys, self._claims)], 0)

    def append(self, rows: Words, records: Sequence[Record], extras: Sequence[bytes]) -> None:
        """Writes entries: first all there is of them, then their rows in the journal.

        Args:
            rows: one an entry; what is about places is set here.
            records: for each array the buffers of its records.
            extras: additional data of each entry; b"" for none.
        """
        count = len(rows)
        row = RowFormat
        rows[:, row.SLOT] = np.arange(self._slot, self._slot + count, dtype=np.uint64)
        for position, (array, buffers) in enumerate(zip(self._arrays, records, strict=True)):
            place = self._format.place[position]
            if place is None:
                start = self._slot * array.nbytes
            else:
                sizes = np.array([len(buffer) for buffer in buffers], np.uint64)
                rows[:, place] = self._ends[position] + np.cumsum(sizes) - sizes
                rows[:, place + 1] = sizes
                start = self._ends[position]
                self._ends[position] += int(sizes.sum())
            if array.nbytes:
                self._put(data_file("", position), buffers, start)
        rows[:, row.EXTRA] = self._ends[-1]
        if any(extras):
            sizes = np.array([len(extra) for extra in extras], np.uint64)
            rows[:, row.EXTRA] += np.cumsum(sizes) - sizes
            self._put(EXTRA, extras, self._ends[-1])
            self._ends[-1] += int(sizes.sum())
        self._slot += count
        if self._sync:
            # another machine must not see a row before what it speaks of
            for name, fd in self._fds.items():
                if name not in (JOURNAL, CLAIM):
                    self._system.sync(fd)
        self._put(JOURNAL, [self._format.seal(rows, self._row, self.name)], self.head_size + self._row * row_size(rows))
        self._row += count

    def sync(self) -> None:
        """Waits until all that was written will survive a loss of power."""
        for fd in self._fds.values():
            self._system.sync(fd)

    def close(self) -> None:
        """Closes the files. What is claimed is claimed no more."""
        if self._claims and CLAIM in self._fds:
            with contextlib.suppress(OSError):
                self.claim(np.empty(0, np.int64))
        _close_all(self._fds, self._system)

    def _put(self, suffix: str, buffers: Sequence[Any], offset: int) -> None:
        fd = self._fds.get(suffix)
        if fd is None:
            fd = self._fds[suffix] = self._system.create(self._path + suffix)
        self._system.write(fd, buffers, offset)
        self.written += sum(len(buffer) for buffer in buffers)
        if self._sync and suffix in (JOURNAL, CLAIM):
            self._system.sync(fd)


def _close_all(fds: dict[str, int], system: System) -> None:
    for fd in fds.values():
        system.close(fd)
    fds.clear()


def rows_of(
    memory: memoryview, nbytes: int, picked: npt.NDArray[np.int64], shrink: Callable[[Any], bytes] | None
) -> Iterable[memoryview | bytes]:
    """Rows of `nbytes` bytes, by their numbers, each compressed if there is something that does that."""
    for row in picked.tolist():
        buffer = memory[row * nbytes : (row + 1) * nbytes]
        yield shrink(buffer) if shrink else buffer


def joined(memory: memoryview, nbytes: int, picked: npt.NDArray[np.int64]) -> list[memoryview]:
    """The rows, those that lie behind one another as one."""
    breaks = (np.flatnonzero(np.diff(picked) != 1) + 1).tolist()
    starts, ends = [0, *breaks], [*breaks, len(picked)]
    return [
        memory[int(picked[start]) * nbytes : (int(picked[end - 1]) + 1) * nbytes]
        for start, end in zip(starts, ends, strict=True)
    ]


def row_size(rows: Words) -> int:
    """Bytes of a row."""
    return 8 * rows.shape[1]


_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay", "ramfs"})


def is_local(path: str) -> bool:
    """Whether only this machine sees a directory; False when that is not certain."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as file:
        for line in file:
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == wanted:
                return source.split()[0] in _LOCAL
    # btrfs shows other numbers than it mounts
    return False
