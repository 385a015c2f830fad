"""The writers of a cache, as a reader knows them: their journals so far, and what they claim."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.claims import STALE, unpack_claim
from hydrax_gpu._cache.descriptor import Descriptor, nameless
from hydrax_gpu._cache.journal import Head, RowFormat, Words, unpack_head
from hydrax_gpu._cache.process import Process, alive
from hydrax_gpu._cache.system import System

__all__ = ["CLAIM", "EXTRA", "JOURNAL", "Peer", "data_file"]

JOURNAL = ".journal"
CLAIM = ".claim"
EXTRA = ".extra.bin"

_PART = 1 << 24  # bytes of a journal that are looked at together


def data_file(writer: str, array: int) -> str:
    """Name of the file with a writer's records of an array."""
    return f"{writer}.{array}.bin"


class Peer:
    """A writer, this process's own included.

    Attributes:
        name: of the writer.
        number: by which the table of entries names it.
        head: of its journal; None as long as that is not whole.
        rows: rows of the journal that have been looked at, good or not.
        damaged: those of them that were not good, though good ones followed.
        trailing: rows at the end that are not good: being written, or torn.
        unreadable: why its journal could not be read; "" when it could.
        error: of the operating system, when that is why.
        ended: whether its process is known to have ended, so that nothing will be added.
    """

    def __init__(self, location: str, name: str, number: int, descriptor: Descriptor, format: RowFormat) -> None:
        self.name = name
        self.number = number
        self.head: Head | None = None
        self.rows = 0
        self.damaged = 0
        self.trailing = 0
        self.ended = False
        self.unreadable = ""
        self.error: OSError | None = None
        self._path = os.path.join(location, name)
        self._format = format
        self._descriptor = nameless(descriptor)
        self._claim = (-1, 0.0)

    def poll(self, system: System, here: Process) -> Words:
        """Rows that have been added to the journal, the good ones, whole."""
        empty = np.empty((0, self._format.width), np.uint64)
        if self.ended:
            return empty
        # looked at first: what a process writes before it ends is in the journal when it is gone
        ended = self.head is not None and alive(self.head.process, here) is False
        try:
            fd = system.open(self._path + JOURNAL)
        except OSError as error:
            self._failed(error)
            return empty
        try:
            if self.head is None:
                self._read_head(system, fd)
            if self.head is None:
                return empty
            found: list[Words] = []
            while (part := self._poll_part(system, fd)) is not None:
                found.append(part)
        except OSError as error:
            self._failed(error)
            return empty
        finally:
            system.close(fd)
        self.ended = ended
        return np.concatenate(found) if found else empty

    def _failed(self, error: OSError) -> None:
        self.ended = isinstance(error, FileNotFoundError)
        self.unreadable = error.strerror or str(error)
        self.error = None if self.ended else error

    def _read_head(self, system: System, fd: int) -> None:
        start, size = bytearray(), 4096
        while isinstance(size, int) and size > len(start):
            start = bytearray(size)
            got = system.read(fd, [start], 0, size)
            if got < size and not isinstance(unpack_head(bytes(start[:got])), Head):
                self.unreadable = "its head is not whole"
                return
            head = unpack_head(bytes(start[:got]))
            if isinstance(head, Head):
                # a file that was put here from another cache, or under another name
                if head.writer != self.name or nameless(head.descriptor) != self._descriptor:
                    self.unreadable, self.ended = "it is of another cache", True
                else:
                    self.head, self.unreadable, self.error = head, "", None
                return
            size = head
        self.unreadable = "its head is damaged"

    def _poll_part(self, system: System, fd: int) -> Words | None:
        assert self.head is not None
        row = self._format.nbytes
        start = self.head.size + self.rows * row
        count = min(system.size(fd) - start, _PART) // row
        if count <= 0:
            return None
        data = bytearray(count * row)
        got = system.read(fd, [data], start, len(data))
        rows, good = self._format.unseal(memoryview(data)[:got], self.rows, self.name)
        places = np.flatnonzero(good)
        if not len(places):
            self.trailing = len(rows)
            return None
        # bad rows at the end may be in the middle of being written: they are looked at again
        done = int(places[-1]) + 1
        self.rows += done
        self.damaged += done - len(places)
        self.trailing = len(rows) - done
        return rows[places]

    def claimed(self, system: System, here: Process, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the keys the writer is about to write."""
        none = np.zeros(len(keys), np.bool_)
        if self.ended or self.head is None:
            return none
        data = b""
        with contextlib.suppress(OSError):
            fd = system.open(self._path + CLAIM)
            try:
                buffer = bytearray(system.size(fd))
                data = bytes(buffer[: system.read(fd, [buffer], 0, len(buffer))])
            finally:
                system.close(fd)
        claim = unpack_claim(data)
        if claim is None or not len(claim[0]):
            return none
        taken = np.isin(keys, claim[0])
        if not taken.any():
            return none
        if alive(self.head.process, here) is False:
            return none
        if self._claim[0] != claim[1]:
            self._claim = (claim[1], system.clock())
        return taken if system.clock() - self._claim[1] < STALE else none
