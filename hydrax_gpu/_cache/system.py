"""The operating system as the cache sees it: few calls, each whole or an error.

Everything that changes the disk goes through here, so that tests can end a process, refuse a call or let another writer
go first between any two of them. Files are written by `write`, never by mapping them: see `docs/cache.md`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["IOV_MAX", "System"]

IOV_MAX = 1024
"""Buffers that one call may have (`UIO_MAXIOV` of Linux)."""

# Others may read, nobody else may write, whatever the umask: pickled values are only read from such files.
_FILE_MODE = 0o644


class System:
    """Calls of the operating system. Buffers are bytes-like; offsets and sizes are in bytes."""

    def make_directory(self, path: str) -> None:
        """Makes a directory and those above it, unless it is there."""
        os.makedirs(path, exist_ok=True)

    def create(self, path: str) -> int:
        """A descriptor of a new file, for reading and writing; FileExistsError when there is one."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)

    def open(self, path: str) -> int:
        """A descriptor of a file, for reading. A symbolic link is an error, as somebody else's file may be behind."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self, fd: int) -> None:
        """Closes a descriptor; an error of that has nothing to say about what was read."""
        with contextlib.suppress(OSError):
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """Names of the files of a directory."""
        return os.listdir(path)

    def size(self, fd: int) -> int:
        """Size of a file."""
        return os.fstat(fd).st_size

    def read(self, fd: int, buffers: Sequence[Any], offset: int, total: int) -> int:
        """Fills buffers, at most `IOV_MAX` and of `total` bytes; less than those only at the end of the file."""
        done = os.preadv(fd, buffers, offset)
        while 0 < done < total:
            more = os.preadv(fd, _after(buffers, done), offset + done)
            if not more:
                break
            done += more
        return done

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> None:
        """Writes all of the buffers, however many."""
        for start in range(0, len(buffers), IOV_MAX):
            part = buffers[start : start + IOV_MAX]
            total, done = sum(len(buffer) for buffer in part), 0
            while done < total:
                done += os.pwritev(fd, _after(part, done), offset + done)
            offset += total

    def sync(self, fd: int) -> None:
        """Waits until what was written to a file has left this machine's memory."""
        os.fsync(fd)

    def link(self, source: str, target: str) -> None:
        """Gives a file another name; FileExistsError when that is taken."""
        os.link(source, target)

    def remove(self, path: str) -> None:
        """Removes a file."""
        os.unlink(path)

    def clock(self) -> float:
        """Seconds, from anywhere on."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Lets others go on."""
        time.sleep(seconds)


def _after(buffers: Sequence[Any], done: int) -> Sequence[Any]:
    if not done:
        return buffers
    rest: list[Any] = []
    for buffer in buffers:
        if done >= len(buffer):
            done -= len(buffer)
        else:
            rest.append(memoryview(buffer)[done:])
            done = 0
    return rest
