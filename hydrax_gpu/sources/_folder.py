"""`ImageFolder`: one file an item, in a folder for each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, cast, final

import numpy as np

from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._files import filesystem, is_remote, local_path
from hydrax_gpu.sources._source import Reader, Source

__all__ = ["IMAGE_EXTENSIONS", "ImageFolder"]

_log = logging.getLogger("hydrax_gpu")

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@final
class ImageFolder(Source["str | tuple[str, int]", "bytes | tuple[bytes, int]"]):
    """Files of a folder: `(path, label)` for each, or paths alone. Their descriptors are what `ImageLoader` takes.

    The classes are the folders in it, in the order of their names (of their characters' code points, so that it is the
    same everywhere), and the label is the class's number, from 0. Files are ordered by class and then by their path in
    it, at any depth. Names that begin with a dot are left out; links to folders are not followed.

    The value of an item is the file's content, with the label if there is one.

    Args:
        root: the folder; a URL of fsspec for one that is elsewhere, whose items need `ImageLoader(read=source.reader)`.
        labels: whether the folders in it are classes; otherwise all files are taken, and paths are the descriptors.
        classes: the names of the classes, in the order of their labels; by default all there are. Others are left out.
        extensions: of the files that are taken, in small letters; others are counted in `ignored`. None takes all.

    Raises:
        OSError: there is no such folder.
        ValueError: there is no file in it, or none in a class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: bool = True,
        classes: Sequence[str] | None = None,
        extensions: Sequence[str] | None = IMAGE_EXTENSIONS,
    ) -> None:
        if isinstance(extensions, str):
            raise TypeError(f"extensions: got {extensions!r}, wanted several, such as ({extensions!r},)")
        self._reader = _WholeFiles()
        self._root = local_path(root).rstrip("/") or "/"
        wanted = None if extensions is None else tuple(each.lower() for each in extensions)
        self._names: list[str] = []
        ignored = 0
        found: list[tuple[str, str]] = []  # class, and path in it; sorted as a pair, since "a b/" < "a/" as text
        for name in _remote(self._root) if is_remote(self._root) else _local(self._root):
            top, _, rest = name.partition("/")
            if labels and (not rest or (classes is not None and top not in classes)):
                ignored += not rest
            elif wanted is not None and not name.lower().endswith(wanted):
                ignored += 1
            else:
                found.append((top, name) if labels else ("", name))
        found.sort()
        self._ignored = ignored
        present = sorted({top for top, _ in found}) if labels else []
        self._classes = tuple(present if classes is None else classes)
        if labels and (empty := [name for name in self._classes if name not in present]):
            raise ValueError(f"{self._root}: got no file for the classes {', '.join(empty)}, wanted some in each")
        if not found:
            kinds = "" if wanted is None else f" that ends with {', '.join(wanted)}"
            where = "in a folder of its class" if labels else "in it"
            raise ValueError(f"{self._root}: got no file{kinds} {where}, wanted at least one (labels={labels})")
        number = {name: label for label, name in enumerate(self._classes)}
        if labels:
            found.sort(key=lambda each: number[each[0]])  # stable
        self._names = [name for _, name in found]
        self._labels = np.array([number[top] for top, _ in found], np.int32) if labels else None
        if ignored:
            _log.info("%s: %d files are not taken, having other extensions or no class", self._root, ignored)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty without labels."""
        return self._classes

    @property
    def ignored(self) -> int:
        """Files that were not taken, for their extension or because they are in no class."""
        return self._ignored

    @property
    def reader(self) -> Reader[str | tuple[str, int], bytes | tuple[bytes, int]]:
        return self._reader

    def __len__(self) -> int:
        return len(self._names)

    def descriptor(self, index: int) -> str | tuple[str, int]:
        path = f"{self._root}/{self._names[index]}" if self._root != "/" else f"/{self._names[index]}"
        return path if self._labels is None else (path, int(self._labels[index]))

    def __repr__(self) -> str:
        return f"ImageFolder({self._root!r}, {len(self)} files, {len(self._classes)} classes)"


def _local(root: str) -> Iterator[str]:
    """Paths of the files below a folder, relative, with slashes."""
    folders = [""]
    while folders:
        inner = folders.pop()
        with os.scandir(os.path.join(root, inner)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{inner}{entry.name}/")
                elif entry.is_file():
                    yield f"{inner}{entry.name}"


def _remote(root: str) -> Iterator[str]:
    fs, name = filesystem(root)
    if not fs.isdir(name):
        raise FileNotFoundError(f"{root}: there is no such folder")
    base = name.rstrip("/") + "/"
    for path in cast("list[str]", fs.find(name)):
        inner = path.removeprefix(base)
        if not any(part.startswith(".") for part in inner.split("/")):
            yield inner


@final
class _WholeFiles(Reader["str | tuple[str, int]", "bytes | tuple[bytes, int]"]):
    """Reads whole files; a few, so that nothing is worth keeping open."""

    def read_rows(self, items: Sequence[str | tuple[str, int]]) -> list[bytes | tuple[bytes, int] | BaseException]:
        paths = [item if isinstance(item, str) else item[0] for item in items]
        contents = _remote_contents(paths)
        values: list[bytes | tuple[bytes, int] | BaseException] = []
        for item, path in zip(items, paths, strict=True):
            data = contents[path] if path in contents else _content(path)
            values.append(data if isinstance(item, str) or isinstance(data, BaseException) else (data, item[1]))
        return values


def _content(path: str) -> bytes | SourceError:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        return SourceError(path, f"it cannot be read ({error.strerror})")


def _remote_contents(paths: Sequence[str]) -> dict[str, bytes | SourceError]:
    remote = [path for path in paths if is_remote(path)]
    if not remote:
        return {}
    fs, _ = filesystem(remote[0])  # they are of one source, and so of one file system
    names = {filesystem(path)[1]: path for path in remote}
    found: dict[str, Any] = fs.cat(list(names), on_error="return") if len(names) > 1 else _one(fs, *names)
    return {
        path: SourceError(path, f"it cannot be read ({found[name]})")
        if isinstance(found[name], BaseException)
        else bytes(found[name])
        for name, path in names.items()
    }


def _one(fs: Any, name: str) -> dict[str, Any]:
    try:
        return {name: fs.cat_file(name)}
    except Exception as error:  # every file system has its own
        return {name: error}
