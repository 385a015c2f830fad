"""Where the engine waits: a queue of messages and the file descriptors of the workers, in one `epoll`.

Two threads can wait here at the same time: the engine's own, and the consumer inside `next()`. The kernel wakes one of
them for an event, the one that came last, which is the consumer when it waits. So a batch that is waited for reaches
its consumer with one wake-up and no other thread in between; a wake-up costs tens of microseconds on a virtual machine.

That needs edge-triggered events: level-triggered ones wake every waiter until somebody has read the data. Whoever is
given an event must therefore handle it.
"""

from __future__ import annotations

import enum
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["EpollInbox", "Waiter"]


class Waiter(enum.IntEnum):
    """Who waits."""

    ENGINE = 0
    CONSUMER = 1


class EpollInbox:
    """Many posters, two waiters; only one thread at a time may `take`.

    `post` can be called from a finalizer in the middle of a garbage collection and from a signal handler. It makes a
    system call only when somebody sleeps. That call is under a lock, against `close`: the number of a closed file
    descriptor may be somebody's new file. The lock is reentrant, because the finalizer may interrupt its holder.
    """

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._asleep = [False, False]
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._event, select.EPOLLIN | select.EPOLLET)
        self._ready: dict[int, Callable[[int], None]] = {}
        self._closed = False
        self._closing = threading.RLock()
        self.consumer = 0
        """Identity of the consumer's thread. Its own posts wake nobody: it comes to `next()` itself."""

    @property
    def pending(self) -> bool:
        """Whether there are messages that nobody has taken."""
        return bool(self._messages)

    def asleep(self, waiter: Waiter) -> bool:
        """Whether a waiter sleeps, or is about to."""
        return self._asleep[waiter]

    def post(self, message: Any, /) -> None:
        """Adds a message; from any thread, without blocking. After `close`, messages are dropped."""
        self._messages.append(message)
        # A waiter first says that it sleeps and then looks at the queue once more; we do it the other way round. So at
        # least one of the two sees the other.
        if (self._asleep[0] or self._asleep[1]) and threading.get_ident() != self.consumer:
            self.wake()

    def wake(self) -> None:
        """Makes a `wait` that is under way, or else the next one, return."""
        with self._closing:
            if not self._closed:
                os.eventfd_write(self._event, 1)

    def register(self, fd: int, ready: Callable[[int], None], *, write: bool = False) -> None:
        """Calls `ready(events)` during `take` when `fd` becomes readable (or, with `write`, writable).

        Once for each time that it does: `ready` must read all there is.
        """
        events = select.EPOLLIN | select.EPOLLET | (select.EPOLLOUT if write else 0)
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def unregister(self, fd: int) -> None:
        """Forgets `fd`, which is still open."""
        if self._ready.pop(fd, None) is not None and not self._closed:
            self._epoll.unregister(fd)

    def wait(self, waiter: Waiter, timeout: float | None, wanted: Callable[[], bool]) -> list[tuple[int, int]]:
        """Sleeps until something happens, or `timeout` seconds (None: for ever).

        Args:
            waiter: who is waiting; one thread each.
            timeout: seconds.
            wanted: asked when everybody can see that the waiter is about to sleep: whether it is to stay awake, for a
                condition that is not a message.

        Returns:
            Events for `take`. None of them may be lost.
        """
        self._asleep[waiter] = True
        try:
            if self._messages or wanted():
                timeout = 0
            return self._epoll.poll(-1 if timeout is None else timeout)
        finally:
            self._asleep[waiter] = False

    def take(self, events: Sequence[tuple[int, int]]) -> list[Any]:
        """Serves the descriptors of `events` and returns all messages that are there."""
        for fd, mask in events:
            if (ready := self._ready.get(fd)) is not None:
                ready(mask)
        messages = self._messages
        taken: list[Any] = []
        while messages:
            taken.append(messages.popleft())
        return taken

    def abandon(self) -> None:
        """`close`, in a fork of the process that it belongs to: what another thread held there is held for ever."""
        self._closing = threading.RLock()
        self.close()

    def close(self) -> None:
        """Gives the file descriptors back. Idempotent."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._epoll.close()
                os.close(self._event)
