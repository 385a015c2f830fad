"""What the kernel knows of the workers: what they had storage read, and how long they computed or waited to.

A loader function is one stretch of time to us. That it sleeps in it while storage reads for it, the kernel tells:
`/proc/PID/io` has the bytes that storage was asked for (none for what was in the page cache), and `schedstat` how long
a thread ran, and how long it could have and was not let. See proc_pid_io(5), and, in the kernel's documentation,
scheduler/sched-stats.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

__all__ = ["Use", "WorkerUse"]


class Use(NamedTuple):
    """Sums over all workers, since each began.

    Attributes:
        read_bytes: read from storage, such as a disk.
        ran_ns: time on a processor; 0 where the kernel does not tell.
        denied_ns: time that they waited for one.
    """

    read_bytes: int = 0
    ran_ns: int = 0
    denied_ns: int = 0

    def plus(self, other: Use) -> Use:
        """The sum of both."""
        return Use(*map(int.__add__, self, other))


class WorkerUse:
    """Looks at the workers. From any thread; a look takes some 30 µs a worker.

    Args:
        root: where the proc file system is.
    """

    def __init__(self, root: str = "/proc") -> None:
        self._root = Path(root)
        self._lock = threading.Lock()
        self._workers: dict[int, Path] = {}
        self._gone = Use()  # of those that others have taken the place of
        self._last: dict[int, Use] = {}

    def add(self, worker: int, pid: int, thread: int = 0) -> None:
        """A worker has started, perhaps in another's place: a thread of this process, or else a process."""
        own = pid == os.getpid()
        with self._lock:
            self._gone = self._gone.plus(self._last.pop(worker, Use()))
            self._workers[worker] = self._root / (f"self/task/{thread}" if own else f"{pid}")

    def look(self) -> Use:
        """What there is now; of a worker that has ended, what there was when it was last looked at."""
        with self._lock:
            for worker, place in self._workers.items():
                try:
                    ran, denied, *_ = map(int, (place / "schedstat").read_text().split())
                    io = (place / "io").read_text()
                    read = int(io[io.index("\nread_bytes:") :].split(None, 2)[1])
                except (OSError, ValueError, IndexError):
                    continue  # it has ended, or this kernel does not tell
                self._last[worker] = Use(read, ran, denied)
            total = self._gone
            for use in self._last.values():
                total = total.plus(use)
            return total
