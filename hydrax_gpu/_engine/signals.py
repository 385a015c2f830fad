"""The signals that end a running loader.

First SIGINT (Ctrl-C): no more batches, the iteration ends cleanly. Second: `KeyboardInterrupt` at the next batch.
Third: the process ends at once. SIGTERM, where the user has asked for that, is as the first SIGINT, however often it
comes: a scheduler that wants its machine back sends it, sometimes to every process of a job, and SIGKILL when it has
lost its patience. The handler only counts and posts; nothing is torn down inside a signal handler.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, TypeAlias

from hydrax_gpu._engine.stream import Stream

__all__ = ["InterruptGuard"]

_Handler: TypeAlias = Any


class InterruptGuard:
    """Takes SIGINT over while a loader runs, and SIGTERM on request; outside the main thread it does nothing.

    Loaders that run at the same time in one process all stop: each guard passes the signal on to the guard that was
    there before it.
    """

    def __init__(self, stream: Stream, *, sigterm: bool = False) -> None:
        self._stream = stream
        self._numbers = (signal.SIGINT, signal.SIGTERM) if sigterm else (signal.SIGINT,)
        self._previous: dict[int, _Handler] = {}
        self._count = 0

    def install(self) -> None:
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._on_signal)
            _installed.append(self)

    def remove(self) -> None:
        """Gives the signals back to whoever had them. Idempotent."""
        if self._previous and threading.current_thread() is threading.main_thread():
            previous, self._previous = self._previous, {}
            _installed.remove(self)
            for number, handler in previous.items():
                # Somebody who took the signal over after us, and has not given it back, keeps it. None stands for a
                # handler that was not installed from Python and cannot be put back from there.
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self._stream.terminated = True
            self._stream.interrupt()
        else:
            self._count += 1
            if self._count >= 3:
                os._exit(128 + number)  # workers end by their parent's death
            self._stream.interrupt(raises=self._count == 2)
        previous = self._previous.get(number)
        if isinstance(getattr(previous, "__self__", None), InterruptGuard) and callable(previous):
            previous(number, frame)


_installed: list[InterruptGuard] = []


def _after_fork_in_child() -> None:
    for guard in reversed(_installed.copy()):  # the loaders are the other process's; each puts back what it has found
        guard.remove()


os.register_at_fork(after_in_child=_after_fork_in_child)
