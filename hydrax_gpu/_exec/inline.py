"""The loader function on the consumer's own thread, inside `next()`: no worker, no prefetch, breakpoints work."""

from __future__ import annotations

import os
import threading
from collections import deque

from hydrax_gpu._exec.chunk import ChunkRunner, describe, format_traceback
from hydrax_gpu._exec.protocol import Inbox, Result, Task, WorkerLost, WorkerReady, WorkerView, WorkSpec
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._ranges import ranged

__all__ = ["InlineExecutor"]


class InlineExecutor:
    """One worker, which is whoever calls `run_one`."""

    def __init__(self, spec: WorkSpec, arena: Arena, inbox: Inbox) -> None:
        self._runner = ChunkRunner(
            spec.loader, spec.layouts, arena, 0,
            retries=spec.retries, backoff=spec.backoff, keep=spec.keep_exceptions, kernels=spec.kernels,
            caches=spec.caches,
        )  # fmt: skip
        self._run = ranged("load", self._runner.run)
        self._startup = spec.startup
        self._inbox = inbox
        self._tasks: deque[Task] = deque()

    @property
    def count(self) -> int:
        return 1

    def start(self) -> None:
        try:
            if self._startup is not None:
                self._startup()
        except (Exception, SystemExit) as error:
            text = f"startup_func raised {describe(error)}"
            self._inbox.post(WorkerLost(0, os.getpid(), None, text, format_traceback(error), error))
            return
        self._inbox.post(WorkerReady(0, os.getpid(), 0, False, threading.get_native_id()))

    @property
    def waiting(self) -> bool:
        return False

    def start_more(self) -> None:
        pass

    def respawn(self, worker: int) -> None:
        self.start()

    def inspect(self) -> list[WorkerView]:
        return []  # whoever could ask is the worker

    def abandon(self) -> None:
        self._tasks.clear()

    def submit(self, worker: int, task: Task) -> None:
        self._tasks.append(task)

    def flush(self) -> None:
        pass

    def look(self) -> None:
        pass  # every task is reported as soon as it is done

    def run_one(self) -> bool:
        if not self._tasks:
            return False
        task = self._tasks.popleft()
        self._inbox.post(Result(0, task.chunk, *self._run(task)))
        return True

    def close(self) -> None:
        self._tasks.clear()
        self._runner.close()
