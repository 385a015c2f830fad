"""One worker process as the main process sees it: its birth, the socket to it, its stacks and its death."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from typing import Any, cast

from hydrax_gpu._exec.chunk import describe, format_traceback
from hydrax_gpu._exec.framing import FrameReader
from hydrax_gpu._exec.protocol import (
    STACK_SIGNAL,
    CacheCounts,
    Failure,
    Inbox,
    Message,
    Result,
    Unreadable,
    WorkerLeft,
    WorkerLost,
    WorkerReady,
    WorkerView,
)
from hydrax_gpu._mem.arena import Arena

__all__ = ["Worker"]

_log = logging.getLogger("hydrax_gpu")

_BOOTSTRAP = (
    "import sys, json; fd, memory, stack, path = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from hydrax_gpu._exec.worker_main import main; main(fd, memory, stack)"
)
_RECEIVE = 1 << 18
_KILL_SECONDS = 5.0
_STACK_SECONDS = 0.5
_STACK_POLL = 0.01
_STACK_BYTES = 1 << 16

_STATES = {
    "T": "stopped by a signal (SIGCONT lets it go on)",
    "t": "stopped by a debugger",
    "D": "in an uninterruptible system call, such as a read of a disk or network file system that hangs",
    "Z": "ended",
}
"""Process states of proc(5) that are worth a word; a sleeping process is the normal thing."""


class Worker:
    """A worker process and the socket to it. After its death another object takes its place."""

    def __init__(self, index: int, inbox: Inbox, arena: Arena) -> None:
        self.index = index
        self.starting = False  # between its start and its being ready, or its end
        self._inbox = inbox
        self._arena = arena
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._stack = -1
        self._stack_read = 0
        self._reader = FrameReader()
        self._queued: list[bytes] = []
        self._chunks: deque[int] = deque()  # that were not reported, in the order of submission, which is that of doing
        self._reported = 0  # how many were
        self._looked = 0  # how many of the former were found to be done
        self._unsent: bytes = b""
        self._started_ns = 0
        self._dismissed = False

    def start(self, path: list[str]) -> None:
        """Starts the process, with `path` as its `sys.path`.

        Raises:
            OSError: the system refuses a process or a file descriptor.
        """
        self._started_ns = time.monotonic_ns()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        memory = self._arena.mapping.fd
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            self._stack = os.memfd_create("hydrax_gpu-stack", os.MFD_CLOEXEC)
            undo.callback(self._close_fds)
            arguments = json.dumps([theirs.fileno(), memory, self._stack, path])
            self._process = subprocess.Popen(
                [os.fsdecode(spawn.get_executable() or sys.executable), *_flags(), "-c", _BOOTSTRAP, arguments],
                stdin=subprocess.DEVNULL,
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
                pass_fds=(theirs.fileno(), memory, self._stack),
            )
            undo.pop_all()
        self._socket = ours
        self.starting = True
        self._inbox.register(ours.fileno(), self._on_event)
        # Not only the socket tells of its end: what it has started itself might hold the other side of that open.
        with contextlib.suppress(OSError):  # Linux before 5.3, some sandboxes
            self._pidfd = os.pidfd_open(self._process.pid)
            self._inbox.register(self._pidfd, self._on_end)

    # The socket.

    def submit(self, chunk: int, data: bytes) -> None:
        """Sends a task with the next `flush`: one system call, and one waking of the worker, for all that is queued."""
        self._chunks.append(chunk)
        self._queued.append(data)

    def look(self) -> None:
        """Posts the results of tasks that were done and not reported.

        A worker tells of quick tasks together, when it has nothing to do any more. If it comes upon a slow item before
        that, what was done must not wait for it. (What has something to tell, like additional data, does.)
        """
        done = self._arena.silently_done(self.index, self._reported)
        while self._looked < done:
            self._inbox.post(Result(self.index, self._chunks[self._looked], -1, None, ()))
            self._looked += 1

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

    def dismiss(self) -> None:
        """Lets the process end, which has nothing to do. Its end is waited for as any other's, by the descriptors."""
        self._dismissed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it is gone already
                self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Closes the socket: the worker ends after the item it is at. Idempotent."""
        if self._socket is not None:
            self._inbox.unregister(self._socket.fileno())
            # Closing is not enough when a fork of this process still has the descriptor open.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if self._pidfd >= 0:
            self._inbox.unregister(self._pidfd)
        self._close_fds()

    def abandon(self) -> None:
        """Forgets the process, which is another's child, and closes what this one has inherited of it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.returncode = 0  # or its end would be waited for here
        self._close_fds()

    def _close_fds(self) -> None:
        for fd in (self._pidfd, self._stack):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._stack = -1

    def _on_event(self, events: int) -> None:
        if self._socket is None:
            return
        if events & select.EPOLLOUT:
            data, self._unsent = self._unsent, b""
            self._inbox.register(self._socket.fileno(), self._on_event)
            self.send(data)
        if events & ~select.EPOLLOUT:
            self._receive(self._socket)

    def _on_end(self, _: int) -> None:
        if self._process is None or self._process.poll() is None:
            return  # an event of another's descriptor, which had the same number before this one
        if self._socket is not None:
            self._receive(self._socket)  # its last words
        if self._socket is not None:
            self._lost()

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
            try:
                for message in self._reader.feed(data):
                    self._inbox.post(self._decode(message))
                    if self._socket is None:
                        return  # it could not start, and said so
            except Exception as error:
                # Not one of ours: something in the worker has written to a descriptor that is none of its business.
                # Which item that was cannot be told; by now it may be far beyond.
                reason = f"It has sent what is no message ({describe(error)}), and was ended for that."
                if self._process is not None:
                    self._process.kill()
                self._lost(reason)
                return
            if len(data) < _RECEIVE:
                return  # that was all: more of it will be another event

    def _decode(self, message: tuple[Any, ...]) -> Message:
        match message:
            case ("done", chunk, busy, data, sent, counts, cached, end, decode):
                self._chunks.popleft()
                self._reported += 1
                self._looked = max(0, self._looked - 1)
                additional = None
                if data is not None:
                    try:
                        additional = pickle.loads(data)
                    except Exception as error:
                        text = f"what the loader function returned cannot be unpickled ({describe(error)})"
                        return Unreadable(self.index, chunk, Failure(0, text, format_traceback(error), error))
                failures = tuple(
                    Failure(offset, text, trace, _unpickled(exception)) for offset, text, trace, exception in sent
                )
                unread, caches = cached or ((), None)
                if caches is not None:
                    caches = CacheCounts(*caches)
                return Result(self.index, chunk, busy, additional, failures, counts, unread, caches, end, decode)
            case ("ready", pid, imported_jax):
                self.starting = False
                return WorkerReady(self.index, pid, time.monotonic_ns() - self._started_ns, imported_jax)
            case ("failed", pid, text, trace, exception):
                self.starting = False
                self.hang_up()
                self.join(time.monotonic() + 1.0)
                return WorkerLost(self.index, pid, None, text, trace, _unpickled(exception))
            case _:
                raise ValueError(f"worker {self.index} sent {message!r}")

    # Its end.

    def join(self, deadline: float) -> int | None:
        """Waits for the process to end until `deadline` (monotonic seconds), then kills it. Returns its exit code."""
        if self._process is None:
            return None
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            return self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            _log.error(
                "worker process %d was killed and does not end: %s. It is left behind; the kernel ends it when that is "
                "over", self._pid, _state_of(self._pid),
            )  # fmt: skip
            return None

    @property
    def pid(self) -> int:
        """Of its process, while that is of use; -1 otherwise."""
        return -1 if self._socket is None else self._pid

    @property
    def _pid(self) -> int:
        return -1 if self._process is None else self._process.pid

    def _lost(self, reason: str = "") -> None:
        self.starting = False
        process = self._process
        if process is None:
            return
        stack = reason or self._new_stack()
        begun = 0 if reason else self._arena.status_of(self.index)[0]
        self.hang_up()
        # The socket closes before the process can be waited for, but not long before; a worker that closed it and
        # lives on is of no use to anybody.
        exitcode = self.join(time.monotonic() + 1.0)
        if self._dismissed and not reason and exitcode == 0:
            self._inbox.post(WorkerLeft(self.index))
        else:
            self._inbox.post(WorkerLost(self.index, process.pid, exitcode, None, stack, None, begun))

    # Looking at it.

    def ask_for_stack(self) -> None:
        """Makes the process write its stack down, for `inspect` to find it."""
        if self._process is None or self._socket is None:
            return
        self._new_stack()
        with contextlib.suppress(OSError):
            os.kill(self._pid, STACK_SIGNAL)

    def inspect(self) -> WorkerView | None:
        """What it is doing; None when there is no process. Takes up to half a second."""
        if self._process is None or self._socket is None:
            return None
        state = _state_of(self._pid)
        # The stack is written by a signal handler, whatever the process is at, the GIL held or not. Nothing tells when
        # it is complete, but that it does not grow any more. A stopped process writes it when it goes on.
        stack, quiet, deadline = "", 0, time.monotonic() + _STACK_SECONDS
        while state != _STATES["T"] and quiet < 3 and time.monotonic() < deadline:
            time.sleep(_STACK_POLL)
            more = self._new_stack()
            stack += more
            quiet = quiet + 1 if stack and not more else 0
        begun, since = self._arena.status_of(self.index)
        return WorkerView(self.index, f"process {self._pid}", state, begun, since, stack.rstrip())

    def _new_stack(self) -> str:
        """What was written to the stack's file since this was last called."""
        if self._stack < 0:
            return ""
        data = os.pread(self._stack, _STACK_BYTES, self._stack_read)
        self._stack_read += len(data)
        return data.decode(errors="replace")


def _flags() -> list[str]:
    # The same flags (-O, -W, -X ...) that multiprocessing passes on; its own function for it is typed nowhere.
    function = cast("Callable[[], list[str]]", subprocess._args_from_interpreter_flags)  # pyright: ignore
    return function()


def _unpickled(data: bytes | None) -> BaseException | None:
    try:
        return None if data is None else pickle.loads(data)
    except Exception:  # its text was sent, too
        return None


def _state_of(pid: int) -> str:
    try:
        # The second field is the program's name in parentheses, which may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return _STATES.get(state, "")
