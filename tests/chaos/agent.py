"""The second process: does to the workers of another process what a busy machine may do. A plain script.

    python agent.py PID

Commands on standard input: `begin SEED BLOWS` and `end`, which is answered by `done KILLED STOPPED`.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def workers_of(main: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{main}/task"):
        try:
            with open(f"/proc/{main}/task/{thread}/children") as file:
                children = [int(pid) for pid in file.read().split()]
            for pid in children:
                with open(f"/proc/{pid}/cmdline") as file:
                    if "worker_main" in file.read():
                        found.append(pid)
        except OSError:
            continue
    return sorted(found)


def strike(pid: int, main: int, number: int) -> bool:
    """Sends a signal to a worker, and to nobody who may have its number by now."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if parent_of(pid) != main:
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


class Blows:
    """Some blows to a process's workers, spread over random milliseconds."""

    def __init__(self, main: int, seed: int, count: int) -> None:
        self.main = main
        self.rng = random.Random(seed)
        self.left = count
        self.killed = 0
        self.stopped = 0
        self.asleep: dict[int, float] = {}  # stopped workers, and when they may go on
        self.next = time.monotonic() + self.rng.uniform(0.0, 0.3)

    def wait(self) -> float | None:
        """Seconds until there is something to do."""
        times = [*self.asleep.values(), *([self.next] if self.left else [])]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def act(self) -> None:
        now = time.monotonic()
        for pid in [pid for pid, until in self.asleep.items() if until <= now]:
            del self.asleep[pid]
            strike(pid, self.main, signal.SIGCONT)
        if self.left and self.next <= now:
            workers = workers_of(self.main)
            if workers:
                pid = self.rng.choice(workers)
                if self.rng.random() < 0.6:
                    self.killed += strike(pid, self.main, signal.SIGKILL)
                elif strike(pid, self.main, signal.SIGSTOP):
                    self.stopped += 1
                    self.asleep[pid] = now + self.rng.uniform(0.001, 0.1)
                self.left -= 1
            self.next = now + self.rng.uniform(0.002, 0.12)

    def end(self) -> None:
        for pid in self.asleep:
            strike(pid, self.main, signal.SIGCONT)


def main(pid: int) -> None:
    blows: Blows | None = None
    buffer = b""
    try:
        while True:
            wait = None if blows is None else blows.wait()
            if select.select([0], [], [], wait)[0]:
                data = os.read(0, 4096)
                if not data:
                    return
                buffer += data
                while b"\n" in buffer:
                    line, _, buffer = buffer.partition(b"\n")
                    match line.decode().split():
                        case ["begin", seed, count]:
                            blows = Blows(pid, int(seed), int(count))
                        case ["end"] if blows is not None:
                            blows.end()
                            os.write(1, f"done {blows.killed} {blows.stopped}\n".encode())
                            blows = None
                        case words:
                            raise ValueError(words)
            elif blows is not None:
                blows.act()
    finally:
        if blows is not None:
            blows.end()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(int(sys.argv[1]))
