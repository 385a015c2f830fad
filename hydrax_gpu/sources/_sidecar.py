"""Indexes of files, kept beside them: made once, checked against the file whenever they are used."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu.sources._files import FileId, is_remote

__all__ = ["SUFFIX", "Index", "indexed"]

_log = logging.getLogger("hydrax_gpu")

Index: TypeAlias = Mapping[str, npt.NDArray[Any]]

SUFFIX = ".hgindex"


def indexed(
    file: FileId, kind: str, version: int, make: Callable[[FileId], Index], folder: str | os.PathLike[str] | None
) -> Index:
    """The index of a file: that which is kept, if it is of this very file, or else a new one, which is kept then.

    An index is an uncompressed `.npz` file, with a checksum of each array, and holds the size and the version of the
    file that it is of. It is written under another name first, so that no half of one is ever found.

    Args:
        file: the file.
        kind: what it is an index of.
        version: of what the index holds.
        make: makes it.
        folder: where it is kept; None: beside the file, and nowhere for remote ones.
    """
    path = _place(file, folder)
    about = {"kind": kind, "version": version, "size": file.size, "file": file.version}
    if path is not None and (kept := _read(path, about)) is not None:
        return kept
    made = make(file)
    if path is not None:
        _write(path, about, made)
    return made


def _place(file: FileId, folder: str | os.PathLike[str] | None) -> str | None:
    if folder is not None:
        # files of one name in several folders must not take turns
        return os.path.join(folder, file.path.replace("://", "/").strip("/").replace("/", "%") + SUFFIX)
    return None if is_remote(file.path) else file.path + SUFFIX


def _read(path: str, about: dict[str, Any]) -> Index | None:
    try:
        # opened here, since NumPy leaves a file open that it does not take for its own
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            found = json.loads(stored["about"].tobytes())
            if found != about:
                _log.info("%s: it is the index of something else (%s), and is made anew", path, found)
                return None
            return {name: stored[name] for name in stored.files if name != "about"}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s: this index is damaged (%s: %s), and is made anew", path, type(error).__name__, str(error))
        return None


def _write(path: str, about: dict[str, Any], index: Index) -> None:
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    partial = ""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd, partial = tempfile.mkstemp(dir=os.path.dirname(path), suffix=SUFFIX + ".partial")
        with open(fd, "wb") as stream:
            arrays: dict[str, Any] = {"about": text, **index}
            np.savez(stream, **arrays)
        os.replace(partial, path)
    except OSError as error:
        _log.warning(
            "%s: the index cannot be kept (%s), so it is made anew each time: give a folder for it, index_folder=...",
            path, error.strerror or str(error),
        )  # fmt: skip
        if partial:
            with contextlib.suppress(OSError):
                os.unlink(partial)
