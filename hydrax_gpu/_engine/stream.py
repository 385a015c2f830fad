"""The consumer's side: `next()`, what it waits for, how it is interrupted, and how all of it ends."""

from __future__ import annotations

import queue
import time

from hydrax_gpu._engine.runner import END, Delivery, Entry, Failed, Runner
from hydrax_gpu._engine.thread import EngineThread
from hydrax_gpu.errors import BatchTimeoutError

__all__ = ["Stream"]


class Stream:
    """Hands out the batches of a runner.

    Args:
        runner: with its core not started.
        threaded: whether the engine has a thread of its own; otherwise it runs inside `next()`.
        timeout: seconds after which a wait is given up, or None.
    """

    def __init__(self, runner: Runner, *, threaded: bool, timeout: float | None) -> None:
        self._runner = runner
        self._engine = EngineThread(runner) if threaded else None
        self._timeout = timeout
        self._ended: Failed | None = None
        self._closed = False
        self.wait_ns = 0
        self.waits = 0
        self.interrupted = False
        self.interrupt_raises = False

    def start(self) -> None:
        if self._engine is not None:
            self._engine.start()
        else:
            self._runner.start()

    def close(self) -> None:
        """Ends the engine and its workers and drops the batches that were not taken. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._engine is not None:
            self._engine.close()
        else:
            self._runner.close()
        while not self._runner.outbox.empty():
            self._runner.outbox.get()

    def interrupt(self, *, raises: bool = False) -> None:
        """Lets the next `next()` end the iteration (or raise KeyboardInterrupt). From any thread or signal handler."""
        self.interrupt_raises = self.interrupt_raises or raises
        self.interrupted = True
        self._runner.outbox.put(END)  # wakes a consumer that waits

    def next(self) -> Delivery | None:
        """The next batch, or None at the end of the stream.

        Raises:
            BatchTimeoutError: none came within the timeout.
            KeyboardInterrupt: after `interrupt(raises=True)`.
            LoaderError, WorkerDied, WorkerStartError, PlacementError: the loader has failed; again at every call.
        """
        if not self.interrupted and self._ended is None:
            entry = self._get()
            if not self.interrupted:
                if type(entry) is Delivery:
                    runner = self._runner
                    runner.taken += 1
                    if runner.wants_taken:
                        runner.inbox.wake()
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

    def _get(self) -> Entry:
        outbox = self._runner.outbox
        try:
            return outbox.get_nowait()
        except queue.Empty:
            pass
        begin = time.perf_counter_ns()
        try:
            if self._engine is None:
                return self._work()
            return outbox.get(timeout=self._timeout)
        except queue.Empty:
            raise self._timed_out() from None
        finally:
            self.wait_ns += time.perf_counter_ns() - begin
            self.waits += 1

    def _work(self) -> Entry:
        """Runs the engine here until there is a batch."""
        runner = self._runner
        while True:
            runner.pump(0)
            if not runner.outbox.empty():
                return runner.outbox.get()
            if not runner.executor.run_one() and not runner.pump(self._timeout) and runner.outbox.empty():
                raise queue.Empty

    def _timed_out(self) -> BatchTimeoutError:
        core = self._runner.core
        lines = [f"no batch has been produced for {self._timeout:g} seconds (timeout_sec)."]
        if core.starved:
            lines.append(
                "All slots are lent: batches, or arrays of batches, that are still referenced hold them. Drop them "
                "(`del batch` at the end of the loop's body), raise depth, or use delivery='copy'."
            )
        for worker, items in core.work_in_progress():
            if items:
                lines.append(f"Worker {worker} was given items {items[:16]}{' ...' if len(items) > 16 else ''}.")
        lines.append(f"Slots: {core.slots.describe()}.")
        return BatchTimeoutError("\n".join(lines))


def positions_after(handed: int, ahead: set[int], position: int) -> int:
    """Adds `position` to the set of positions handed out and returns the new first one that was not."""
    ahead.add(position)
    while handed in ahead:
        ahead.remove(handed)
        handed += 1
    return handed
