"""The loader function on threads of this process: for loaders that release the GIL (decoding, reading, NumPy)."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

from hydrax_gpu._exec.chunk import ChunkRunner, describe, format_traceback
from hydrax_gpu._exec.protocol import Inbox, Result, Task, WorkerLost, WorkerReady, WorkSpec
from hydrax_gpu._mem.arena import Arena

__all__ = ["ThreadExecutor"]


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

    def start_more(self) -> None:
        pass

    def submit(self, worker: int, task: Task) -> None:
        self._queues[worker].put(task)

    def flush(self) -> None:
        pass

    def run_one(self) -> bool:
        return False

    def close(self) -> None:
        self._arena.status[0] = 1
        for tasks in self._queues:
            tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        begin = time.perf_counter_ns()
        try:
            if self._spec.startup is not None:
                self._spec.startup()
        except (Exception, SystemExit) as error:
            text = f"startup_func raised {describe(error)}"
            self._inbox.post(WorkerLost(worker, os.getpid(), None, text, format_traceback(error), error))
            return
        runner = ChunkRunner(self._spec.loader, self._spec.layouts, self._arena, worker)
        self._inbox.post(WorkerReady(worker, os.getpid(), time.perf_counter_ns() - begin, False))
        while (task := self._queues[worker].get()) is not None:
            busy, additional, failures = runner.run(task)
            self._inbox.post(Result(worker, task.chunk, busy, additional, failures))
