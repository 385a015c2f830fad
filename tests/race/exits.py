"""Ends processes that run a loader in many ways at random moments, and looks at what they leave behind.

One process imports everything once and forks a child for each seed. It is the *subreaper* of them all: whatever process
of theirs loses its parent becomes its own child, and cannot hide.

    python -m tests.race.exits 50
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from hydrax_gpu import DataGroup, Dataloader, WorkerStartError
from tests import loaders

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_SECONDS = 15.0

WAYS = (
    "the end", "break", "an exception", "sys.exit", "os._exit", "SIGKILL", "SIGKILL from outside", "SIGTERM",
    "Ctrl-C once", "Ctrl-C twice", "Ctrl-C three times", "a worker is killed, then SIGKILL", "never left",
    "a failed start", "a batch that is kept",
)  # fmt: skip

kept: list[Any] = []


def live(seed: int) -> None:
    """What a child does."""
    rng = random.Random(seed)
    way = WAYS[seed % len(WAYS)]
    data = DataGroup(4, range(100), loader_arrays={"x": ((3, 500), "float32", "float32")}, seed=seed)
    failing = way == "a failed start"
    killed = "SIGKILL" in way
    it = Dataloader(
        # A worker that waits for more to do ends by itself when nobody talks to it any more; one that hangs does not.
        loaders.Hangs("in Python", 12) if killed else loaders.fill,
        data,
        executor="process" if seed % 4 or failing else rng.choice(["thread", "inline"]),
        loader_count=rng.randint(1, 3),
        depth=rng.randint(2, 4),
        delivery=rng.choice(["alias", "copy"]),
        startup_func=loaders.fails_to_start if failing else None,
        end_at=("epoch", 2),
    )
    stop = 2 if killed else rng.randint(0, 40)
    if way == "never left":
        it.__enter__()
        kept.append(it)
        for _ in range(stop):
            next(it)
        return
    try:
        with it:
            number = -1
            for batch in it:
                number += 1
                if way == "a batch that is kept":
                    kept[:] = [batch]
                del batch
                if number == stop and leave(way, it):
                    break
    except (KeyboardInterrupt, WorkerStartError) as error:
        if (way == "Ctrl-C twice") != isinstance(error, KeyboardInterrupt):
            raise


def leave(way: str, it: Dataloader[Any]) -> bool:
    match way:
        case "break" | "a batch that is kept":
            return True
        case "an exception":
            raise KeyError("of the user's own")
        case "sys.exit":
            sys.exit(7)
        case "os._exit":
            os._exit(7)
        case "SIGKILL" | "a worker is killed, then SIGKILL":
            if way != "SIGKILL" and it.report().executor == "process":
                os.kill(it.report().workers[0].pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGKILL from outside":
            while True:
                signal.pause()
        case "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        case "Ctrl-C once" | "Ctrl-C twice" | "Ctrl-C three times":
            for _ in range({"once": 1, "twice": 2}.get(way.split()[1], 3)):
                signal.raise_signal(signal.SIGINT)
        case _:
            pass
    return False


EXPECTED = {"an exception": 1, "sys.exit": 7, "os._exit": 7, "SIGKILL": -9, "SIGKILL from outside": -9, "SIGTERM": -15,
            "Ctrl-C three times": 130, "a worker is killed, then SIGKILL": -9}  # fmt: skip


def watch(seed: int, pid: int) -> str:
    """Waits for a child and all that it leaves behind; returns what was wrong."""
    way = WAYS[seed % len(WAYS)]
    if way == "SIGKILL from outside":  # at any moment, from its first on
        time.sleep(random.Random(seed).uniform(0.0, 0.8))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            orphan, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not orphan and time.monotonic() > deadline:
            return f"{way}: processes are left behind: {open(f'/proc/self/task/{os.getpid()}/children').read()}"
        if not orphan:
            time.sleep(0.002)
    return "" if code == EXPECTED.get(way, 0) else f"{way}: exit status {code}, wanted {EXPECTED.get(way, 0)}"


def main(count: int, body: Callable[[int], None]) -> bool:
    """Runs seeds 0 .. count - 1; True in the forked children, which then end as Python programs do."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    problems: dict[int, str] = {}
    before = set(os.listdir("/dev/shm"))
    for seed in range(count):
        pid = os.fork()
        if pid == 0:
            body(seed)
            return True
        problem = watch(seed, pid)
        if not problem and (new := set(os.listdir("/dev/shm")) - before):
            problem = f"{WAYS[seed % len(WAYS)]}: left in /dev/shm: {new}"
        if problem:
            problems[seed] = problem
    print(json.dumps({"seeds": count, "problems": problems}), flush=True)
    return False


if __name__ == "__main__":
    import jax  # noqa: F401  # once, and not in every child; its backend starts in those

    main(int(sys.argv[1]), live)
