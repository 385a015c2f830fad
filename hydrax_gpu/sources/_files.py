"""Files that items lie in: what they were when they were indexed, and reading them from any process."""

from __future__ import annotations

import importlib
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu.errors import SourceChanged, SourceError

__all__ = ["FileId", "LocalFile", "OpenFile", "Opened", "RemoteFile", "filesystem", "identify", "open_file", "ranges"]

K = TypeVar("K", bound=Hashable)
H = TypeVar("H")

_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems of fsspec call the version of a file, the surest first."""


class FileId(NamedTuple):
    """A file as it was when it was indexed.

    Attributes:
        path: absolute path, or URL of fsspec.
        size: bytes.
        version: what changes with its content: its time of modification in nanoseconds, or, of remote files, the entity
            tag, hash or time that the file system tells; "" where it tells none.
    """

    path: str
    size: int
    version: str


def is_remote(path: str) -> bool:
    """Whether a path is for fsspec. `file://` is not."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str | os.PathLike[str]) -> str:
    """An absolute path, or the URL as it is."""
    text = os.fsdecode(path)
    if is_remote(text):
        return text
    return os.path.abspath(text.removeprefix("file://"))


def filesystem(path: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        ImportError: fsspec, or the package that it needs for this kind of URL, is not installed.
    """
    try:
        core: Any = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise ImportError(f"{path}: remote paths need fsspec: pip install 'hydrax-gpu[remote]'") from error
    fs, name = core.url_to_fs(path)
    return fs, name


def identify(path: str | os.PathLike[str]) -> FileId:
    """What a file is now.

    Raises:
        OSError: it is not there, or may not be looked at.
        ValueError: it is no regular file.
    """
    text = local_path(path)
    if is_remote(text):
        fs, name = filesystem(text)
        return _remote_id(text, fs.info(name))
    status = os.stat(text)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{text}: wanted a file, this is a folder, a pipe or a device")
    return FileId(text, status.st_size, str(status.st_mtime_ns))


def _remote_id(path: str, info: Any) -> FileId:
    if info.get("type") == "directory" or info.get("size") is None:
        raise ValueError(f"{path}: wanted a file of known size, the file system says {info.get('type', 'nothing')!r}")
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return FileId(path, int(info["size"]), version)


def _changed(file: FileId, size: int, version: str) -> SourceChanged:
    return SourceChanged(
        file.path,
        f"it has changed since the source was made: it had {file.size:,} bytes (version {file.version}) and has "
        f"{size:,} (version {version}). Make the source anew",
    )


@final
class LocalFile:
    """A file of this machine, opened for as long as this object lives. Any number of threads may read.

    Raises:
        SourceError: it cannot be opened.
        SourceChanged: it is not what it was.
    """

    def __init__(self, file: FileId) -> None:
        self.file = file
        self._fd = -1
        self._view: npt.NDArray[np.uint8] | None = None
        try:
            self._fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(file.path, f"it cannot be opened ({error.strerror})") from error
        self.check()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def check(self) -> None:
        """Looks whether the file was written to."""
        status = os.fstat(self._fd)
        if status.st_size != self.file.size or str(status.st_mtime_ns) != self.file.version:
            raise _changed(self.file, status.st_size, str(status.st_mtime_ns))

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there.

        Raises:
            SourceError: it ends before, or cannot be read.
        """
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    raise self._ends(offset, size, len(data))
                data += more
        except OSError as error:
            raise SourceError(self.file.path, f"it cannot be read ({error.strerror})") from error
        return data

    def read_into(self, buffer: npt.NDArray[np.uint8], offset: int) -> None:
        """Fills a contiguous array from there; raises as `read`."""
        size, done = buffer.nbytes, 0
        try:
            while done < size:
                count = os.preadv(self._fd, [buffer[done:].data], offset + done)
                if not count:
                    raise self._ends(offset, size, done)
                done += count
        except OSError as error:
            raise SourceError(self.file.path, f"it cannot be read ({error.strerror})") from error

    def view(self) -> npt.NDArray[np.uint8]:
        """All of it, uint8, mapped and read-only."""
        if self._view is None:
            if not self.file.size:
                return np.empty(0, np.uint8)
            self._view = np.frombuffer(mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ), np.uint8)
        return self._view

    def _ends(self, offset: int, size: int, got: int) -> SourceError:
        return SourceError(self.file.path, f"it ends within an item: {got:,} of {size:,} bytes at {offset:,} are there")


@final
class RemoteFile:
    """A file that fsspec reads. Raises as `LocalFile`."""

    def __init__(self, file: FileId) -> None:
        self.file = file
        self.fs, self.name = filesystem(file.path)
        try:
            found = _remote_id(file.path, self.fs.info(self.name))
        except (OSError, ValueError) as error:
            raise SourceError(file.path, f"it cannot be opened ({error})") from error
        if found != file:
            raise _changed(file, found.size, found.version)

    def check(self) -> None:
        """Asking a server again for each batch would cost more than the batch; it was asked when this was opened."""

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there; raises `SourceError`."""
        return self.take(offset, size, self._cat(offset, size))

    def _cat(self, offset: int, size: int) -> Any:
        if not size:
            return b""
        try:
            return self.fs.cat_file(self.name, start=offset, end=offset + size)
        except Exception as error:  # every file system has its own
            return error

    def take(self, offset: int, size: int, got: Any) -> bytes:
        """What `cat_file` or `cat_ranges` gave, if it is all there."""
        if isinstance(got, BaseException):
            raise SourceError(self.file.path, f"it cannot be read ({type(got).__name__}: {got})") from got
        if len(got) != size:
            raise SourceError(
                self.file.path, f"it ends within an item: {len(got):,} of {size:,} bytes at {offset:,} are there"
            )
        return bytes(got)

    def open(self) -> Any:
        """A file object of fsspec's."""
        return self.fs.open(self.name, "rb")


OpenFile: TypeAlias = LocalFile | RemoteFile


def open_file(file: FileId) -> OpenFile:
    """The file, if it is what it was."""
    return RemoteFile(file) if is_remote(file.path) else LocalFile(file)


@final
class Opened(Generic[K, H]):
    """What a process has opened, each when it is first asked for; the ones not used for the longest time are let go.

    It belongs to a reader and ends with it. After a fork it is empty. Threads may share it.

    Args:
        make: opens one.
        limit: how many are kept open.
    """

    def __init__(self, make: Callable[[K], H], limit: int = 128) -> None:
        self._make, self._limit = make, limit
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[K, H] = OrderedDict()

    def __getitem__(self, key: K) -> H:
        if self._pid != os.getpid():
            self._begin()  # what a parent has opened may hold locks of threads that are not here
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
                return found
        made = self._make(key)  # not under the lock: it may take a server's time
        with self._lock:
            made = self._open.setdefault(key, made)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
        return made

    def __reduce__(self) -> Any:
        return Opened, (self._make, self._limit)


def ranges(opened: Opened[FileId, OpenFile], wanted: Sequence[tuple[FileId, int, int]]) -> list[bytes | SourceError]:
    """Bytes of files, each `(file, offset, size)`, or what is wrong with each; remote ones are asked for together."""
    found: list[bytes | SourceError] = []
    remote: list[int] = []
    checked: dict[int, OpenFile | SourceError] = {}
    for number, (file, offset, size) in enumerate(wanted):
        handle = checked.get(id(file))
        if handle is None:
            try:
                handle = opened[file]
                handle.check()
            except SourceError as error:
                handle = error
            checked[id(file)] = handle
        if isinstance(handle, SourceError):
            found.append(handle)
        elif isinstance(handle, LocalFile):
            try:
                found.append(handle.read(offset, size))
            except SourceError as error:
                found.append(error)
        else:
            remote.append(number)
            found.append(b"")
    if remote:
        _remote_ranges(opened, wanted, remote, found)
    return found


def _remote_ranges(
    opened: Opened[FileId, OpenFile],
    wanted: Sequence[tuple[FileId, int, int]],
    numbers: list[int],
    found: list[bytes | SourceError],
) -> None:
    by_system: dict[int, list[tuple[int, RemoteFile]]] = {}
    for number in numbers:
        handle = opened[wanted[number][0]]
        assert isinstance(handle, RemoteFile)
        by_system.setdefault(id(handle.fs), []).append((number, handle))
    for group in by_system.values():
        begins = [wanted[number][1] for number, _ in group]
        ends = [wanted[number][1] + wanted[number][2] for number, _ in group]
        try:
            names = [handle.name for _, handle in group]
            parts: Any = group[0][1].fs.cat_ranges(names, begins, ends, on_error="return")
        except Exception as error:
            parts = [error] * len(group)
        for (number, handle), part in zip(group, parts, strict=True):
            _, offset, size = wanted[number]
            try:
                found[number] = handle.take(offset, size, part)
            except SourceError as error:
                found[number] = error
