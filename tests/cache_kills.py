"""A start-up function that has workers killed while they write to a cache; apart, so that workers import little."""

from __future__ import annotations

import os
import signal
from typing import Any

from hydrax_gpu._cache.system import System
from tests.caches import half_of


class DiesWriting:
    """Kills the process in the middle of one of its writes, as often as there are files `<folder>/<n>` left.

    Args:
        folder: of empty files; each death takes one away, so that only so many die.
        at: the write of a process, counted from 0, of which half is done.
    """

    def __init__(self, folder: str, at: int) -> None:
        self.folder = folder
        self.at = at

    def __call__(self) -> None:
        write, calls = System.write, [0]

        def dying(system: System, fd: int, buffers: Any, offset: int) -> None:
            calls[0] += 1
            if calls[0] > self.at:
                for name in os.listdir(self.folder):
                    try:
                        os.unlink(os.path.join(self.folder, name))
                    except FileNotFoundError:  # another has died of it
                        continue
                    os.pwrite(fd, half_of(buffers), offset)
                    os.kill(os.getpid(), signal.SIGKILL)
            write(system, fd, buffers, offset)

        System.write = dying  # pyright: ignore[reportAttributeAccessIssue]
