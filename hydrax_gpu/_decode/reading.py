"""A file, whole, into a buffer that is used for the next one too."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu.errors import ImageError

__all__ = ["Bytes", "Reader"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

_KEEP = 1 << 24
"""Bytes of a buffer that is kept: one larger file must not hold its memory for ever."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@final
class Reader:
    """Reads files. An instance belongs to one thread.

    Args:
        limit: bytes of the largest file that is read.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer: Bytes = np.empty(1 << 18, np.uint8)

    def read(self, path: str | os.PathLike[str]) -> Bytes:
        """The file's bytes, uint8 of shape `(size,)`: a view of a buffer that the next call writes over.

        Raises:
            ImageError: it is not there, is no regular file (which could keep one waiting for ever), may not be read, is
                empty, or too large.
        """
        try:
            # without O_NONBLOCK, opening a pipe waits for somebody to write to it
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise ImageError(os.fsdecode(path), _reason(error)) from error
        try:
            return self._read(fd, path)
        except OSError as error:
            raise ImageError(os.fsdecode(path), _reason(error)) from error
        finally:
            os.close(fd)

    def _read(self, fd: int, path: Any) -> Bytes:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
            raise ImageError(os.fsdecode(path), f"it is {kind}, wanted a picture's file")
        if status.st_size > self._limit:
            raise ImageError(
                os.fsdecode(path), f"it has {status.st_size:,} bytes, more than max_file_bytes={self._limit:,} allows"
            )
        if not status.st_size:
            raise ImageError(os.fsdecode(path), "it is empty (0 bytes)")
        if status.st_size > self._buffer.size or self._buffer.size > _KEEP:
            self._buffer = np.empty(max(1 << 18, status.st_size * 3 // 2), np.uint8)
        done = 0
        while done < status.st_size:
            count = os.readv(fd, [cast("Any", self._buffer[done : status.st_size])])
            if not count:  # it has become shorter; what there is will be found to be truncated
                break
            done += count
        return self._buffer[:done]


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            return "it is no regular file, wanted a picture's file"
        return f"it cannot be read ({error.strerror or error})"
    return f"this is no path ({error})"
