"""The engine's own thread: drives the runner while the consumer does not."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Generator

from hydrax_gpu._engine.entries import Failed
from hydrax_gpu._engine.inbox import Waiter
from hydrax_gpu._engine.runner import Runner
from hydrax_gpu._exec.threads import stack_of

__all__ = ["EngineThread"]

_AWAY_NS = 1_000_000
_PAUSE = 0.002
_LONGEST_PAUSE = 0.016
_LOOK_SECONDS = 0.01
"""How long a slot that the consumer itself gives back, which wakes nobody, may stay empty if it does not come back."""

_CLOSE_SECONDS = 20.0
"""How long the end waits for this thread: longer than executors wait for their workers and then for killed ones."""

_log = logging.getLogger("hydrax_gpu")


class EngineThread:
    """Starts a runner, takes turns until it is closed, and ends it.

    Args:
        runner: to be driven.
        patience: seconds that the consumer may take for one turn before it is said where it hangs; None for ever.
    """

    def __init__(self, runner: Runner, patience: float | None = None) -> None:
        self._runner = runner
        self._patience = patience
        self._creator = threading.current_thread()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hydrax_gpu-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stops the engine and waits for it and all workers to end, but not for ever. Idempotent."""
        self._closing = True
        if self._thread is threading.current_thread():
            return
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._thread.is_alive():
            # Again and again, because a consumer in another thread may be woken in its place.
            self._runner.inbox.wake()
            self._thread.join(0.05)
            if time.monotonic() > deadline:
                _log.error(
                    "the loader's thread has not ended within %g seconds and is left behind. It is here:\n%s",
                    _CLOSE_SECONDS, stack_of(self._thread),
                )  # fmt: skip
                return

    def _run(self) -> None:
        # Signals are for the main thread, and workers are born with this thread's mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        # Woken by the consumer as it leaves next(), neither this thread nor a worker is to take its processor from it.
        with contextlib.suppress(OSError):  # forbidden in some containers
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        runner = self._runner
        try:
            with self._turn():
                runner.start()
                timeout = runner.turn()
            while not self._closing:
                self._let_the_consumer_wake()  # after every turn, also before standing back
                events: list[tuple[int, int]] = []
                if runner.consumer_drives:
                    self._stand_back()
                else:
                    if timeout is None and (runner.core.lends or runner.executor.waiting):
                        timeout = _LOOK_SECONDS
                    events = runner.inbox.wait(Waiter.ENGINE, timeout, self._stay_awake)
                runner.stages.tick()
                with self._turn():
                    timeout = runner.turn(events)
                    runner.start_more()
        except Exception as error:
            _log.exception("the engine of a Dataloader has failed; this is a defect of hydrax_gpu")
            runner.outbox.put(Failed(error))
            runner.inbox.wake()
        finally:
            with self._turn():
                runner.close()

    @contextlib.contextmanager
    def _turn(self) -> Generator[None, None, None]:
        # The consumer places batches too, and a placement_func that hangs there hangs in next(): nobody could raise a
        # time-out. It can at least be said where.
        lock, patience = self._runner.lock, self._patience
        if not lock.acquire(timeout=-1 if patience is None else patience):
            _log.error(
                "next() has not come back from placing a batch for %g seconds. If placement_func is in the stack "
                "below, that is what hangs:\n%s", patience, stack_of(self._creator),
            )  # fmt: skip
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _stand_back(self) -> None:
        # A consumer that waits for batches drives the runner itself, and does so better alone: while it handles one
        # event, the kernel would give us the next, and we would get in its way. So we leave the events to it until it
        # has been away with a batch for a while. Looking from time to time is cheaper than being told at every batch.
        runner, pause = self._runner, _PAUSE
        while not self._closing:
            time.sleep(pause)
            runner.stages.tick()
            with self._turn():
                runner.start_more()
            if not runner.consumer_drives and time.perf_counter_ns() - runner.consumer_left_ns > _AWAY_NS:
                return
            pause = min(2 * pause, _LONGEST_PAUSE) if runner.consumer_drives else _PAUSE

    def _stay_awake(self) -> bool:
        return self._closing or self._runner.has_work()

    def _let_the_consumer_wake(self) -> None:
        # The kernel has woken this thread although the consumer waits as well, and now there is something for it. It is
        # told, but must not be robbed of that event by our going back to wait: so first it has to have seen it. This
        # happens seldom, when the consumer has just come, and does not last.
        inbox, outbox = self._runner.inbox, self._runner.outbox
        while inbox.asleep(Waiter.CONSUMER) and not outbox.empty() and not self._closing:
            inbox.wake()
            time.sleep(50e-6)
