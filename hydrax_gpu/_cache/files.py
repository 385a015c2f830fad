"""Open files of a cache, few at a time and shared by threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager

from hydrax_gpu._cache.system import System

__all__ = ["Files"]

_MOST = 64


class Files:
    """Keeps files open that were read lately. A file that is in use is never closed."""

    def __init__(self, location: str, system: System) -> None:
        self._location = location
        self._system = system
        self._lock = threading.Lock()
        self._open: dict[str, list[int]] = {}  # name → [descriptor, users], the one used last at the end
        weakref.finalize(self, _close_all, self._open, system).atexit = False

    @contextmanager
    def opened(self, name: str) -> Generator[int, None, None]:
        """A descriptor of a file, for the time of the block.

        Raises:
            OSError: it cannot be opened.
        """
        entry = self.take(name)
        try:
            yield entry[0]
        finally:
            self.give(name, entry)

    def close(self) -> None:
        """Closes all files, those in use as soon as they are not."""
        with self._lock:
            _close_all(self._open, self._system)

    def take(self, name: str) -> list[int]:
        """`opened` without a block: a list whose first element is the descriptor, to be given back.

        Raises:
            OSError: it cannot be opened.
        """
        with self._lock:
            entry = self._open.pop(name, None)
            if entry is None:
                entry = [self._system.open(os.path.join(self._location, name)), 0]
                for other, (fd, users) in list(self._open.items()):
                    if len(self._open) < _MOST:
                        break
                    if not users:
                        del self._open[other]
                        self._system.close(fd)
            self._open[name] = entry
            entry[1] += 1
            return entry

    def give(self, name: str, entry: list[int]) -> None:
        """Gives a descriptor back that was taken."""
        with self._lock:
            entry[1] -= 1
            if not entry[1] and self._open.get(name) is not entry:
                self._system.close(entry[0])


def _close_all(entries: dict[str, list[int]], system: System) -> None:
    unused = [fd for fd, users in entries.values() if not users]
    entries.clear()
    for fd in unused:
        system.close(fd)
