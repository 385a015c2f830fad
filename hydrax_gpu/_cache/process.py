"""Which process a writer is, and whether it still runs.

A process id alone names many processes over time, and in containers several at once. With the machine's boot, the
namespace of ids and the time of its start it names one, and this machine can tell whether that is alive. Of processes
of other machines nothing can be told.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

__all__ = ["Process", "alive", "current"]


@dataclass(frozen=True)
class Process:
    """A process, once and for all.

    Attributes:
        place: what its id is valid in: a boot of a machine and a namespace; "" where that is unknown.
        pid: its id there.
        start: ticks from the machine's start to its own.
    """

    place: str
    pid: int
    start: int


def current() -> Process:
    """The calling process."""
    pid = os.getpid()
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return Process(f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}", pid, _start(pid) or 0)
    except OSError:
        return Process("", pid, 0)


def alive(process: Process, here: Process) -> bool | None:
    """Whether a process runs, as seen from `here`; None when that cannot be told."""
    if not process.place or process.place != here.place:
        return None
    return _start(process.pid) == process.start


def _start(pid: int) -> int | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        # the name, in parentheses, may have anything in it; the state is the first field after it
        fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    return None
