"""The loader function on threads of this process: for loaders that release the GIL (decoding, reading, NumPy)."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback

from hydrax_gpu._exec import role
from hydrax_gpu._exec.chunk import ChunkRunner, describe, format_traceback
from hydrax_gpu._exec.protocol import Inbox, Result, Task, WorkerLost, WorkerReady, WorkerView, WorkSpec
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._ranges import ranged

__all__ = ["GRACE_SECONDS", "ThreadExecutor", "stack_of"]

GRACE_SECONDS = 5.0
"""How long the end waits for loader functions that are under way."""

_log = logging.getLogger("hydrax_gpu")


class ThreadExecutor:
    """`count` threads, each with a queue of its own."""

    def __init__(self, spec: WorkSpec, arena: Arena, inbox: Inbox, count: int) -> None:
        self._spec = spec
        self._arena = arena
        self._inbox = inbox
        self._queues: list[queue.SimpleQueue[Task | None]] = [queue.SimpleQueue() for _ in range(count)]
        self._threads: list[threading.Thread] = []

    @property
    def count(self) -> int:
        return len(self._queues)

    def start(self) -> None:
        for worker in range(self.count):
            thread = threading.Thread(target=self._run, args=(worker,), name=f"hydrax_gpu-loader-{worker}", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def waiting(self) -> bool:
        return False

    def start_more(self) -> None:
        pass

    def respawn(self, worker: int) -> None:
        raise AssertionError("a thread cannot be lost once it has started")

    def inspect(self) -> list[WorkerView]:
        return [
            WorkerView(worker, f"thread {thread.name}", "", *self._arena.status_of(worker), stack_of(thread))
            for worker, thread in enumerate(self._threads)
        ]

    def abandon(self) -> None:
        self._threads.clear()

    def submit(self, worker: int, task: Task) -> None:
        self._queues[worker].put(task)

    def flush(self) -> None:
        pass

    def look(self) -> None:
        pass  # every task is reported as soon as it is done

    def run_one(self) -> bool:
        return False

    def close(self) -> None:
        self._arena.status[0] = 1
        for tasks in self._queues:
            tasks.put(None)
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.error(
                    "%s did not come back from the loader function within %g seconds and is left behind; a thread "
                    "cannot be ended from outside. It is here:\n%s",
                    thread.name, GRACE_SECONDS, stack_of(thread),
                )  # fmt: skip
        self._threads.clear()

    def _run(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        begin = time.perf_counter_ns()
        role.share_processors(self.count)
        spec = self._spec
        try:
            if spec.startup is not None:
                spec.startup()
        except BaseException as error:
            text = f"startup_func raised {describe(error)}"
            self._inbox.post(WorkerLost(worker, os.getpid(), None, text, format_traceback(error), error))
            return
        # Whatever is raised on this thread is of the loader function's own making.
        runner = ChunkRunner(
            spec.loader, spec.layouts, self._arena, worker,
            retries=spec.retries, backoff=spec.backoff, keep=spec.keep_exceptions, catch=(BaseException,),
            kernels=spec.kernels, caches=spec.caches,
        )  # fmt: skip
        run = ranged("load", runner.run)
        self._inbox.post(
            WorkerReady(worker, os.getpid(), time.perf_counter_ns() - begin, False, threading.get_native_id())
        )
        while (task := self._queues[worker].get()) is not None:
            self._inbox.post(Result(worker, task.chunk, *run(task)))
        runner.close()


def stack_of(thread: threading.Thread) -> str:
    """Where a thread is, innermost call first; "" if it has ended."""
    frame = None if thread.ident is None else sys._current_frames().get(thread.ident)  # pyright: ignore[reportPrivateUsage]
    if frame is None:
        return ""
    return "".join(reversed(traceback.format_stack(frame))).rstrip()
