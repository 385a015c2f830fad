"""Whether pickled values may be opened: a pickle can run any code, so only when nobody else can have put it there."""

from __future__ import annotations

import os
import stat

from hydrax_gpu.errors import UnsafeCache

__all__ = ["require_own"]


def require_own(location: str, path: str, found: os.stat_result) -> None:
    """Makes sure that only the current user can have written a file.

    Args:
        location: directory of the cache.
        path: of the file.
        found: what `os.fstat` says of the opened file, so that it is about what will be read.

    Raises:
        UnsafeCache: the file, or its directory, is somebody else's, or others may write to it.
    """
    user = os.geteuid()
    for what, status in ((path, found), (location, os.stat(location))):
        if status.st_uid != user:
            problem = f"belongs to user {status.st_uid} and not to you ({user})"
            fix = "If you trust its contents, make a copy that is yours with `cp -r`"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            problem = f"may be written by others (mode {stat.S_IMODE(status.st_mode):o})"
            fix = f"If nobody else has written to it, `chmod go-w {what}`"
        else:
            continue
        raise UnsafeCache(
            f"additional data in {path} is pickled, which can run any code when it is read, and {what} {problem}. "
            f"{fix}; or return values that need no pickle: numbers, str, bytes, lists, tuples, dicts, NumPy arrays."
        )
