"""Whether this process is a loader's worker, and which part of the machine a worker may take for itself."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["become_worker", "cpu_ns", "is_worker", "share_processors", "threads_per_worker"]

_worker = False


class _Share(threading.local):
    workers = 1


_share = _Share()


def is_worker() -> bool:
    """True in a worker process of a `Dataloader`, False everywhere else.

    A worker imports the script that was run when the loader function is defined in it; code that must not run there
    belongs under `if __name__ == "__main__":`, or can ask this function.
    """
    return _worker


def become_worker() -> None:
    """Called once, first thing, by a worker process."""
    global _worker
    _worker = True


def share_processors(workers: int) -> None:
    """Tells the loader on this thread that so many workers have the processors among them."""
    _share.workers = workers


def threads_per_worker() -> int:
    """How many threads a loader function may keep busy: the processors of this process, shared among all workers.

    To be asked on the thread that the loader function runs on. At least 1. The processors are those that the process
    may run on (`os.sched_getaffinity`); a CPU quota of a container is not looked at.
    """
    return max(1, len(os.sched_getaffinity(0)) // _share.workers)


def cpu_ns(number: int, *, thread: bool = False) -> int:
    """Processor time of a process, or a thread, in nanoseconds; -1 when that cannot be had.

    Args:
        number: its id, as the kernel has it.
        thread: whether it is a thread of this process.
    """
    # As the kernel numbers the clocks of others: 2 is the time on a processor, 4 says that it is a thread's. What
    # pthread_getcpuclockid makes of a thread that has ended is undefined, and the kernel just says that it has.
    try:
        return time.clock_gettime_ns(~number << 3 | (6 if thread else 2))
    except (OSError, OverflowError):
        return -1
