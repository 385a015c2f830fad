"""The loader function in worker processes.

Workers are fresh interpreters, never forks: a fork of a process with XLA's threads can hang in any lock. They come up
while the main process still imports jax, and get three things: a socket, the arena's file descriptor, and one pickle
with the loader function. They import neither jax nor anything that does.

When the main process ends, however it ends, the kernel ends its workers: each asks for SIGKILL on its parent's death.
That signal is tied to the *thread* that started the worker, so `start` must be called from the engine's thread, which
lives as long as the executor.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from hydrax_gpu import errors
from hydrax_gpu._exec import role
from hydrax_gpu._exec.framing import encode
from hydrax_gpu._exec.protocol import STACK_SIGNAL, Inbox, Task, WorkerLeft, WorkerView, WorkSpec
from hydrax_gpu._exec.worker import Worker
from hydrax_gpu._mem.arena import Arena

__all__ = ["ProcessExecutor"]

_GRACE_SECONDS = 5.0


class ProcessExecutor:
    """At most `count` worker processes, `first` of them in the beginning.

    Args:
        spec: pickled here, in the caller's thread, so that an unpicklable loader function is an error of the
            constructor's caller and not of a thread.
        arena: shared memory, whose file descriptor is passed on.

    Raises:
        TypeError: the loader function or `startup_func` cannot be pickled.
    """

    def __init__(self, spec: WorkSpec, arena: Arena, inbox: Inbox, count: int, first: int | None = None) -> None:
        self._arena = arena
        self._inbox = inbox
        self._spec = _encode_spec(spec)
        self._greeting = (os.getpid(), tuple(arena.shape), sys.argv, _main_module())
        self._path = _search_path()
        self._workers = [Worker(index, inbox, arena) for index in range(count)]
        self._waiting = deque(self._workers[:first])  # to be started

    @property
    def count(self) -> int:
        return len(self._workers)

    def start(self) -> None:
        self.start_more()

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def start_more(self) -> None:
        if not self._waiting:
            return
        # The main thread, which imports jax meanwhile, needs a processor for itself. More workers at a time than there
        # are others would only slow it down, and it is what the first batch waits for.
        starting = sum(worker.starting for worker in self._workers)
        free = max(1, len(os.sched_getaffinity(0)) - 1) - starting
        # Blocked signals stay blocked in the child until it has said what it wants to do with them: a Ctrl-C, which
        # the terminal sends to all processes, must not end a worker that is still importing.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, STACK_SIGNAL})
        try:
            for _ in range(min(free, len(self._waiting))):
                worker = self._waiting[0]
                worker.start(self._path)
                self._waiting.popleft()
                worker.send(encode((worker.index, *self._greeting)))
                worker.send(self._spec)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def respawn(self, worker: int) -> None:
        self._arena.reset_status(worker)
        self._workers[worker] = Worker(worker, self._inbox, self._arena)
        self._waiting.append(self._workers[worker])

    def dismiss(self, worker: int) -> None:
        self._workers[worker].dismiss()

    def withdraw(self) -> list[int]:
        withdrawn = [worker.index for worker in self._waiting]
        self._waiting.clear()
        for worker in withdrawn:
            self._inbox.post(WorkerLeft(worker))
        return withdrawn

    def cpu_ns(self, worker: int) -> int:
        pid = self._workers[worker].pid
        return -1 if pid < 0 else role.cpu_ns(pid)

    def pid(self, worker: int) -> int:
        return self._workers[worker].pid

    def inspect(self) -> list[WorkerView]:
        for worker in self._workers:
            worker.ask_for_stack()  # all of them at once
        return [view for worker in self._workers if (view := worker.inspect()) is not None]

    def submit(self, worker: int, task: Task) -> None:
        self._workers[worker].submit(task.chunk, encode(tuple(task)))

    def look(self) -> None:
        for worker in self._workers:
            worker.look()

    def flush(self) -> None:
        for worker in self._workers:
            worker.flush()

    def run_one(self) -> bool:
        return False

    def abandon(self) -> None:
        self._waiting.clear()
        for worker in self._workers:
            worker.abandon()
        self._arena.mapping.close_fd()

    def close(self) -> None:
        self._arena.status[0] = 1
        self._waiting.clear()
        for worker in self._workers:
            worker.hang_up()
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in self._workers:
            worker.join(deadline)
        self._arena.mapping.close_fd()


def _encode_spec(spec: WorkSpec) -> bytes:
    try:
        parts = (
            spec.loader,
            spec.startup,
            tuple(spec.layouts),
            spec.nice,
            spec.retries,
            spec.backoff,
            spec.keep_exceptions,
            spec.kernels,
            dict(spec.caches),
        )
        return encode(parts)
    except Exception as error:
        raise TypeError(
            f"the loader function or startup_func cannot be sent to worker processes ({error}). Define it at the top "
            "level of a module, or as an instance of a class defined there with __call__; lambdas and functions inside "
            "functions cannot be pickled. executor='thread' and executor='inline' take any callable."
        ) from error


def _main_module() -> dict[str, Any]:
    """How multiprocessing would find this process's main module again; empty where it cannot (an interactive one)."""
    preparation = spawn.get_preparation_data("hydrax_gpu-loader")
    return {key: value for key, value in preparation.items() if key.startswith("init_main")}


def _search_path() -> list[str]:
    """The parent's `sys.path` made absolute, with the folder that this package was imported from on it."""
    home = str(Path(errors.__file__).parent.parent)
    path = [os.path.abspath(entry) for entry in sys.path]
    return path if home in path else [*path, home]
