"""Where the engine waits: a queue of messages and the file descriptors of the workers, in one call."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["EpollInbox"]


class EpollInbox:
    """Many posters, one reader.

    `post` can be called from a finalizer in the middle of a garbage collection and from a signal handler. It makes a
    system call only when the reader sleeps. That call is under a lock, against `close`: the number of a closed file
    descriptor may be somebody's new file. The lock is reentrant, because the finalizer may interrupt its holder.
    """

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._asleep = False
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._event, select.EPOLLIN)
        self._ready: dict[int, Callable[[int], None]] = {}
        self._closed = False
        self._closing = threading.RLock()

    def post(self, message: Any, /) -> None:
        """Adds a message; from any thread, without blocking. After `close`, messages are dropped."""
        self._messages.append(message)
        # The reader first says that it is asleep and then looks at the queue once more; we do it the other way round.
        # So at least one of the two sees the other.
        if self._asleep:
            self.wake()

    def wake(self) -> None:
        """Makes a `wait` that is under way return."""
        with self._closing:
            if not self._closed:
                os.eventfd_write(self._event, 1)

    def register(self, fd: int, ready: Callable[[int], None], *, write: bool = False) -> None:
        """Calls `ready(events)` during `wait` whenever `fd` is readable (or, with `write`, writable)."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def unregister(self, fd: int) -> None:
        """Forgets `fd`, which is still open."""
        if self._ready.pop(fd, None) is not None and not self._closed:
            self._epoll.unregister(fd)

    def wait(self, timeout: float | None, sleeping: Callable[[], bool] | None = None) -> list[Any]:
        """Returns the messages that are there, waiting for some up to `timeout` seconds (None: for ever).

        Args:
            sleeping: called when about to sleep, after posters have been told to wake us; returns whether to sleep
                after all. For a condition that is not a message.
        """
        messages = self._messages
        if not messages and timeout != 0:
            self._asleep = True
            if messages or (sleeping is not None and not sleeping()):
                timeout = 0
            elif timeout is None:
                timeout = -1
        elif messages:
            timeout = 0
        try:
            events = self._epoll.poll(timeout)
        finally:
            self._asleep = False
        for fd, mask in events:
            if fd == self._event:
                os.eventfd_read(fd)
            elif (ready := self._ready.get(fd)) is not None:
                ready(mask)
        taken: list[Any] = []
        while messages:
            taken.append(messages.popleft())
        return taken

    def close(self) -> None:
        """Gives the file descriptors back. Idempotent."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._epoll.close()
                os.close(self._event)
