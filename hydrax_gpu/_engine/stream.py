"""The consumer's side: `next()`, what it waits for, how it is interrupted, and how all of it ends."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from hydrax_gpu._engine.entries import END, Delivery, Dropped, Entry, Failed, Lent
from hydrax_gpu._engine.inbox import Waiter
from hydrax_gpu._engine.runner import Runner
from hydrax_gpu._engine.thread import EngineThread
from hydrax_gpu._engine.watch import describe_holders, stuck_engine, timed_out
from hydrax_gpu._place import annotated, prepare, profiled
from hydrax_gpu.errors import BatchTimeoutError

__all__ = ["Stream"]

_log = logging.getLogger("hydrax_gpu")

T = TypeVar("T")

_LOOK_SECONDS = 0.01
"""How often a consumer that waits looks whether something was done that nobody has told it of."""


class Stream:
    """Hands out the batches of a runner.

    Args:
        runner: with its core not started.
        threaded: whether the engine has a thread of its own for the times when nobody waits in `next()`.
        timeout: seconds after which a wait is given up, or None.
        depth: number of slots, for the watch on batches that are kept.
    """

    def __init__(self, runner: Runner, *, threaded: bool, timeout: float | None, depth: int) -> None:
        self._runner = runner
        self._engine = EngineThread(runner, timeout) if threaded else None
        self._timeout = timeout
        self._depth = depth
        # The last batches that were handed out and share slots. The oldest of them should be gone: while it is not,
        # and those after it are not either, no more than one slot is left, or none.
        self._recent: deque[Lent] | None = deque(maxlen=1 if depth == 1 else max(2, depth - 1))
        self._ended: Failed | None = None
        self._waits = runner.stages.waits
        self.profiled: Callable[[], bool] = bool  # whether a profile may be being taken
        self._closed = False
        self._forked = False
        self.interrupted = False
        self.interrupt_raises = False
        self.terminated = False  # interrupted by SIGTERM

    @property
    def wait_ns(self) -> int:
        """Nanoseconds that `next()` has waited, in all."""
        return self._waits.ns

    @property
    def waits(self) -> int:
        """How often it has."""
        return self._waits.count

    @property
    def runner(self) -> Runner:
        """What this stream hands out the batches of."""
        return self._runner

    def start(self) -> None:
        """Starts the engine and its workers."""
        _running.add(self)
        if self._runner.caches is not None:
            self._runner.caches.start()
        if self._engine is not None:
            self._engine.start()
        else:
            with self._runner.lock:
                self._runner.start()

    def prepare(self) -> None:
        """Imports jax and starts it, which had better be while the workers start."""
        prepare()
        self.profiled = profiled()

    def close(self) -> None:
        """Ends the engine and its workers and drops the batches that were not taken. Idempotent."""
        if self._closed:
            return
        self._closed = True
        _running.discard(self)
        self._runner.inbox.wake()  # a consumer in another thread must not wait for what will never come
        if self._engine is not None:
            self._engine.close()
        else:
            with self._runner.lock:
                self._runner.close()
        while not self._runner.outbox.empty():
            self._runner.outbox.get()
        if self._runner.caches is not None:
            self._runner.caches.close()  # which may take as long as it takes to write what waits

    def abandon(self) -> None:
        """In a fork of the process that runs this: leaves all of it to that process."""
        self._closed = self._forked = True
        _running.discard(self)
        self._runner.abandon()

    def interrupt(self, *, raises: bool = False) -> None:
        """Lets the next `next()` end the iteration (or raise KeyboardInterrupt). From any thread or signal handler."""
        self.interrupt_raises = self.interrupt_raises or raises
        self.interrupted = True
        self._runner.outbox.put(END)
        self._runner.inbox.wake()

    def next(self) -> Delivery | Dropped | None:
        """The next batch, or that one was left out, or None at the end of the stream.

        Raises:
            BatchTimeoutError: none came within the timeout.
            KeyboardInterrupt: after `interrupt(raises=True)`.
            RuntimeError: this process is a fork of the one that runs the loader.
            LoaderError, TooManyBadItems, WorkerDied, WorkerStartError, PlacementError: the loader has failed; again at
                every call.
        """
        if self._recent is not None and len(self._recent) == self._recent.maxlen:
            self._check_kept(self._recent[0])
        if not self.interrupted and self._ended is None:
            entry = self._get()
            if not self.interrupted:
                if type(entry) is Delivery:
                    if entry.lent is not None:
                        self._runner.lent[entry.lent.slot] = entry.lent
                        if self._recent is not None:
                            self._recent.append(entry.lent)
                    stages = self._runner.stages
                    stages.batches += 1
                    stages.items += entry.items
                    if entry.position >= stages.due:
                        stages.leave(entry.position, entry.items)
                    return entry
                if type(entry) is Dropped:
                    return entry
                if isinstance(entry, Failed):
                    self._ended = entry
                else:
                    self._runner.outbox.put(END)  # for the next call
        if self.interrupt_raises:
            self.interrupt_raises = False
            raise KeyboardInterrupt
        if self._ended is not None:
            raise self._ended.error
        return None

    def named_next(self) -> Delivery | Dropped | None:
        """`next`, under a name in the profile that is taken."""
        return annotated("hydrax_gpu.next", self.next)

    def _check_kept(self, lent: Lent) -> None:
        alive = lent.alive()
        if alive:
            assert self._recent is not None
            age = len(self._recent)
            self._recent = None  # once is enough
            _log.warning(
                "a batch that was handed out %d steps ago is still referenced and holds one of %d slots; when all are "
                "held, the loader has to wait. Drop it (`del batch` at the end of the loop's body), raise depth, or "
                "use delivery='copy'.\n%s", age, self._depth, describe_holders(alive),
            )  # fmt: skip

    def _get(self) -> Entry:
        runner = self._runner
        if self._forked:
            raise RuntimeError(
                "this process is a fork of the one that runs the Dataloader, and cannot take batches from it: both "
                "would read the same sockets. Iterate in the process that entered its `with` block, or enter another "
                "Dataloader here."
            )
        try:
            entry = runner.outbox.get_nowait()
        except queue.Empty:
            return self._wait()
        if type(entry) is Dropped:
            return entry  # it took no place in the outbox
        runner.taken += 1
        if runner.retires:
            runner.retire_now()
        if (runner.wants_taken or runner.inbox.pending) and self._engine is not None:
            runner.inbox.wake()  # there is something to do, and we go away with a batch
        return entry

    def _wait(self) -> Entry:
        """Drives the engine here until there is a batch."""
        runner, inbox = self._runner, self._runner.inbox
        waits = self._waits
        begin = waits.since = time.perf_counter_ns()
        stages = runner.stages
        if stages.batches >= stages.await_from:
            stages.wait(begin)
        inbox.consumer = threading.get_ident()
        runner.consumer_drives = True
        try:
            events: list[tuple[int, int]] = []
            while True:
                if not runner.lock.acquire(timeout=self._left(begin, -1)):
                    assert self._timeout is not None
                    raise stuck_engine(self._timeout)
                try:
                    if self._closed:  # by another thread
                        return END
                    again = runner.turn(events)
                finally:
                    runner.lock.release()
                try:
                    entry = runner.outbox.get_nowait()
                except queue.Empty:
                    pass
                else:
                    if type(entry) is not Dropped:
                        runner.taken += 1
                    return entry
                if runner.executor.waiting:
                    self._let_the_engine_wake()
                if runner.executor.run_one():
                    events = []
                    continue
                left = self._left(begin, None)
                if self._timeout is not None and left == 0:
                    with runner.lock:
                        raise timed_out(runner, self._timeout)
                times = [seconds for seconds in (left, again, _LOOK_SECONDS) if seconds is not None]
                events = inbox.wait(Waiter.CONSUMER, min(times), self._stay_awake)
                if not events:
                    runner.executor.look()
        except BatchTimeoutError:
            raise
        except BaseException as error:
            # A signal handler of the user's has raised in the middle of something; what that was cannot be told.
            self._ended = Failed(_broken(error))
            raise
        finally:
            runner.consumer_left_ns = end = time.perf_counter_ns()
            waits.count += 1
            waits.ns += end - begin
            waits.since = 0
            runner.consumer_drives = False

    def _let_the_engine_wake(self) -> None:
        # A worker is to be started, which only the engine's thread may do, and that may be asleep. It is told, but must
        # not be robbed of that event by our going back to wait; as the other way round, see `EngineThread`.
        inbox, deadline = self._runner.inbox, time.monotonic() + _LOOK_SECONDS
        while inbox.asleep(Waiter.ENGINE) and time.monotonic() < deadline:
            inbox.wake()
            time.sleep(50e-6)

    def _stay_awake(self) -> bool:
        return self._closed or not self._runner.outbox.empty()

    def _left(self, begin: int, for_ever: T) -> float | T:
        """Seconds until a wait that began at `begin` is given up; `for_ever` when it never is."""
        return for_ever if self._timeout is None else max(0.0, self._timeout - (time.perf_counter_ns() - begin) / 1e9)


_running: weakref.WeakSet[Stream] = weakref.WeakSet()


def running_streams() -> list[Stream]:
    """The streams that were started and not closed."""
    return list(_running)


@cache
def close_at_exit() -> None:
    """Has streams closed at the interpreter's end that nobody closes: their threads must not run into its shutdown.

    To be called after _place has asked for its own part of the end, which is to come after this.
    """
    atexit.register(_close_running)


def _after_fork_in_child() -> None:
    for stream in running_streams():
        stream.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _close_running() -> None:
    for stream in running_streams():
        stream.close()


def _broken(error: BaseException) -> RuntimeError:
    broken = RuntimeError(
        f"the Dataloader was interrupted by {type(error).__name__} inside next() and cannot go on; "
        "make another one with start_at=loader.state()"
    )
    broken.__cause__ = error
    return broken


def positions_after(handed: int, ahead: set[int], position: int) -> int:
    """Adds `position` to the set of positions handed out and returns the new first one that was not."""
    ahead.add(position)
    while handed in ahead:
        ahead.remove(handed)
        handed += 1
    return handed
