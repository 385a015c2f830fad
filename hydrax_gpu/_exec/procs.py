"""The loader function in worker processes.

Workers are fresh interpreters, never forks: a fork of a process with XLA's threads can hang in any lock. They come up
while the main process still imports jax, and get three things: a socket, the arena's file descriptor, and one pickle
with the loader function. They import neither jax nor anything that does.

When the main process ends, however it ends, the kernel ends its workers: each asks for SIGKILL on its parent's death.
That signal is tied to the *thread* that started the worker, so `start` must be called from the engine's thread, which
lives as long as the executor.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from typing import Any, cast

from hydrax_gpu import errors
from hydrax_gpu._exec.framing import FrameReader, encode, frame
from hydrax_gpu._exec.protocol import Failure, Inbox, Result, Task, WorkerLost, WorkerReady, WorkSpec
from hydrax_gpu._mem.arena import Arena

__all__ = ["ProcessExecutor"]

_BOOTSTRAP = (
    "import sys, json; fd, memory, path = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from hydrax_gpu._exec.worker_main import main; main(fd, memory)"
)
_RECEIVE = 1 << 18
_GRACE_SECONDS = 5.0


class ProcessExecutor:
    """`count` worker processes.

    Args:
        spec: pickled here, in the caller's thread, so that an unpicklable loader function is an error of the
            constructor's caller and not of a thread.
        arena: shared memory, whose file descriptor is passed on.

    Raises:
        TypeError: the loader function or `startup_func` cannot be pickled.
    """

    def __init__(self, spec: WorkSpec, arena: Arena, inbox: Inbox, count: int) -> None:
        self._arena = arena
        self._inbox = inbox
        self._spec = _pickle_spec(spec)
        self._workers = [_Worker(index, inbox) for index in range(count)]
        self._waiting = deque(self._workers)  # not started yet

    @property
    def count(self) -> int:
        return len(self._workers)

    def start(self) -> None:
        self.start_more()

    def start_more(self) -> None:
        if not self._waiting:
            return
        # The main thread, which imports jax meanwhile, needs a processor for itself. More workers at a time than there
        # are others would only slow it down, and it is what the first batch waits for.
        starting = sum(worker.starting for worker in self._workers)
        free = max(1, len(os.sched_getaffinity(0)) - 1) - starting
        # Blocked signals stay blocked in the child until it has said what it wants to do with them: a Ctrl-C, which
        # the terminal sends to all processes, must not end a worker that is still importing.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(min(free, len(self._waiting))):
                self._waiting.popleft().start(self._arena, self._spec)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not self._waiting:
            self._arena.mapping.close_fd()

    def submit(self, worker: int, task: Task) -> None:
        self._workers[worker].queue(encode(tuple(task)))

    def flush(self) -> None:
        for worker in self._workers:
            worker.flush()

    def run_one(self) -> bool:
        return False

    def close(self) -> None:
        self._arena.status[0] = 1
        for worker in self._workers:
            worker.hang_up()
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in self._workers:
            worker.join(deadline)
        self._arena.mapping.close_fd()


class _Worker:
    """One worker process and the socket to it."""

    def __init__(self, index: int, inbox: Inbox) -> None:
        self.index = index
        self._inbox = inbox
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._queued: list[bytes] = []
        self._unsent: bytes = b""
        self._started_ns = 0
        self.starting = False  # between its start and its being ready, or its end

    def start(self, arena: Arena, spec: bytes) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        arguments = json.dumps([theirs.fileno(), arena.mapping.fd, _search_path()])
        # The same flags (-O, -W, -X ...) that multiprocessing passes on; its own function for it is typed nowhere.
        flags = cast("Callable[[], list[str]]", subprocess._args_from_interpreter_flags)  # pyright: ignore
        self._started_ns = time.monotonic_ns()
        with theirs:
            self._process = subprocess.Popen(
                [os.fsdecode(spawn.get_executable() or sys.executable), *flags(), "-c", _BOOTSTRAP, arguments],
                stdin=subprocess.DEVNULL,
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
                pass_fds=(theirs.fileno(), arena.mapping.fd),
            )
        self._socket = ours
        self.starting = True
        self._inbox.register(ours.fileno(), self._on_event)
        shape = arena.shape
        self.send(encode((self.index, os.getpid(), tuple(shape), sys.argv, _main_module())))
        self.send(frame(spec))

    def queue(self, data: bytes) -> None:
        """Sends with the next `flush`: one system call, and one waking of the worker, for all that is queued."""
        self._queued.append(data)

    def flush(self) -> None:
        if self._queued:
            data = b"".join(self._queued)
            self._queued.clear()
            self.send(data)

    def send(self, data: bytes) -> None:
        """Sends without ever blocking: what the kernel does not take now goes out when it is writable."""
        if self._socket is None:
            return  # lost; its end was reported, and what it was given is the engine's to give to another
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the worker is gone; its end of the socket tells that too, through `_on_event`
        if sent < len(data):
            self._unsent = data[sent:]
            self._inbox.register(self._socket.fileno(), self._on_event, write=True)

    def hang_up(self) -> None:
        """Closes the socket: the worker ends after the item it is at."""
        if self._socket is not None:
            self._inbox.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def join(self, deadline: float) -> int | None:
        """Waits for the process to end until `deadline` (monotonic seconds), then kills it. Returns its exit code."""
        if self._process is None:
            return None
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _on_event(self, events: int) -> None:
        if self._socket is None:
            return
        if events & select.EPOLLOUT:
            data, self._unsent = self._unsent, b""
            self._inbox.register(self._socket.fileno(), self._on_event)
            self.send(data)
        if events & ~select.EPOLLOUT:
            self._receive(self._socket)

    def _receive(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            for message in self._reader.feed(data):
                self._inbox.post(self._decode(message))
            if len(data) < _RECEIVE:
                return  # that was all: more of it will be another event

    def _decode(self, message: tuple[Any, ...]) -> Result | WorkerReady | WorkerLost:
        match message:
            case ("done", chunk, busy, additional, failures):
                return Result(self.index, chunk, busy, additional, tuple(Failure(*failure) for failure in failures))
            case ("ready", pid, imported_jax):
                self.starting = False
                return WorkerReady(self.index, pid, time.monotonic_ns() - self._started_ns, imported_jax)
            case ("failed", pid, text, trace, exception):
                return WorkerLost(self.index, pid, None, text, trace, exception)
            case _:
                raise AssertionError(f"worker {self.index} sent {message!r}")

    def _lost(self) -> None:
        self.starting = False
        self.hang_up()
        process = self._process
        if process is None:
            return
        # The socket closes before the process can be waited for, but not long before; a worker that closed it and
        # lives on is of no use to anybody.
        exitcode = self.join(time.monotonic() + 1.0)
        self._inbox.post(WorkerLost(self.index, process.pid, exitcode, None, "", None))


def _pickle_spec(spec: WorkSpec) -> bytes:
    try:
        return pickle.dumps((spec.loader, spec.startup, tuple(spec.layouts), spec.nice), protocol=5)
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
