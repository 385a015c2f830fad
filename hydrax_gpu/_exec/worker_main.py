"""The life of a worker process: greet, load the user's function, fill rows until the socket closes.

Start-up time and memory of every worker are decided by what this module imports: NumPy is the largest of it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NoReturn

from hydrax_gpu._exec import role
from hydrax_gpu._exec.chunk import ChunkRunner, Done, describe, format_traceback
from hydrax_gpu._exec.framing import FrameReader, encode
from hydrax_gpu._exec.protocol import STACK_SIGNAL, Failure, Task
from hydrax_gpu._mem.arena import Arena, ArenaShape
from hydrax_gpu._ranges import ranged

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_RECEIVE = 1 << 18
_ANSWER_NS = 200_000


def main(fd: int, memory: int, stack: int) -> NoReturn:
    """Runs the worker on the socket `fd` with the arena in file descriptor `memory`; ends the process.

    Its Python stacks go to the file `stack` when it crashes, and when it is asked for them by a signal.
    """
    role.become_worker()
    for inherited in (fd, stack):  # not by what the loader function may start
        os.set_inheritable(inherited, False)
    faulthandler.enable(stack)
    faulthandler.register(STACK_SIGNAL, stack)
    # A terminal sends SIGINT, and a scheduler SIGTERM, to all processes of a job: it is the main process's to decide
    # what comes of it. Workers end with that, and when it hangs up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, STACK_SIGNAL})
    link = _Link(fd)
    index, parent, shape, argv, main_module = link.receive()
    _die_with(parent)
    try:
        sys.argv = argv
        sys.modules["__main__"] = _LazyMain(main_module)
        arena = Arena.attach(ArenaShape(*shape), memory)
        role.share_processors(arena.shape.workers)
        loader, startup, layouts, nice, retries, backoff, keep, kernels, caches = link.receive()
        if nice:
            os.nice(nice)
        if startup is not None:
            startup()
        runner = ChunkRunner(
            loader, layouts, arena, index,
            retries=retries, backoff=backoff, keep=keep, catch=(BaseException,), kernels=kernels,
            caches=caches,
        )  # fmt: skip
    except BaseException as error:
        link.send(encode(("failed", os.getpid(), describe(error), format_traceback(error), _pickled(error))))
        sys.exit(1)
    link.send(encode(("ready", os.getpid(), "jax" in sys.modules)))
    run = ranged("load", runner.run)
    gc.freeze()  # what was imported stays; keep it out of every later collection
    while True:
        task = Task(*link.receive())
        done = run(task)
        link.answer(_encode_result(task, done), done.busy_ns)


class _Link:
    """The worker's end of the socket. When the other end closes, the process ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd  # without the socket module, which a worker needs for nothing else
        self._unsent: list[bytes] = []
        self._unsent_ns = 0
        self._reader = FrameReader()
        self._messages: Iterator[Any] = iter(())

    def receive(self) -> Any:
        while True:
            # One at a time: how the second message is unpickled depends on what was done about the first.
            for message in self._messages:
                return message
            self.flush()
            try:
                data = os.read(self._fd, _RECEIVE)
            except OSError:
                data = b""
            if not data:
                _leave()
            self._messages = self._reader.feed(data)

    def answer(self, data: bytes, busy_ns: int) -> None:
        """Sends when there is nothing left to do, or when what is there took long: messages cost more than items."""
        self._unsent.append(data)
        self._unsent_ns += busy_ns
        if self._unsent_ns > _ANSWER_NS:
            self.flush()

    def flush(self) -> None:
        if self._unsent:
            self.send(b"".join(self._unsent))
            self._unsent.clear()
            self._unsent_ns = 0

    def send(self, data: bytes) -> None:
        try:
            sent = os.write(self._fd, data)
            while sent < len(data):
                data = data[sent:]
                sent = os.write(self._fd, data)
        except OSError:
            _leave()


def _leave() -> NoReturn:
    # Not sys.exit: there is nothing to clean up, and a library's atexit handler or non-daemon thread must not keep a
    # worker alive that nobody talks to any more. What the loader printed is not lost.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
    os._exit(0)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request
        os._exit(1)


class _LazyMain(ModuleType):
    """Stands for the parent's main module until something of it is needed.

    Pickle reaches for a name in `__main__` by an attribute look-up on that module. Only then is the script imported, as
    multiprocessing would do it. So a loader function in a module of its own never makes a worker run the imports of the
    training script, jax among them.
    """

    def __init__(self, how: dict[str, Any]) -> None:
        super().__init__("__main__")
        self.__dict__["_how"] = how

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        how = self.__dict__.pop("_how", None)
        if how is not None:
            from multiprocessing import spawn

            spawn.prepare(how)
        real = sys.modules["__main__"]
        if real is self:  # its import is under way, or the parent's main cannot be imported
            raise AttributeError(f"the main module has no {name!r} that a worker can import")
        return getattr(real, name)


def _encode_result(task: Task, done: Done) -> bytes:
    busy, additional, failures, counts, unread, caches, end, decode = done
    # What the user's objects make of being pickled, and unpickled on the other side, must not touch the rest of the
    # message: it says which items this is about.
    data: bytes | None = None
    if additional is not None:
        try:
            data = pickle.dumps(additional, protocol=5)
        except Exception:
            # Some item's additional data cannot be pickled: that item has failed, the others have not.
            for offset, value in enumerate(additional):
                try:
                    pickle.dumps(value, protocol=5)
                except Exception as error:
                    additional[offset] = None
                    text = f"what the loader function returned cannot be pickled ({describe(error)})"
                    failures = (*failures, Failure(offset, text, format_traceback(error), None))
            data = pickle.dumps(additional, protocol=5)
    sent = tuple((*failure[:-1], _pickled(failure.exception)) for failure in failures)
    cached = (unread, None if caches is None else tuple(caches)) if unread or caches is not None else None
    return encode(("done", task.chunk, busy, data, sent, counts, cached, end, decode))


def _pickled(error: BaseException | None) -> bytes | None:
    """An exception, if it survives pickling; otherwise it is left out, its text having been sent anyway."""
    try:
        data = pickle.dumps(error, protocol=5)
        return data if type(pickle.loads(data)) is type(error) else None
    except Exception:
        return None
