"""The Ctrl-C contract of a running loader.

First SIGINT: no more batches, the iteration ends cleanly. Second: `KeyboardInterrupt` at the next batch. Third: the
process ends at once. The handler only counts and posts; nothing is torn down inside a signal handler.
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
    """Takes SIGINT over while a loader runs; outside the main thread it does nothing.

    Loaders that run at the same time in one process all stop: each guard passes the signal on to the guard that was
    there before it.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._previous: _Handler = None
        self._installed = False
        self._count = 0

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True

    def remove(self) -> None:
        """Gives SIGINT back to whoever had it. Idempotent."""
        if self._installed and threading.current_thread() is threading.main_thread():
            self._installed = False
            # Somebody who took the signal over after us, and has not given it back, keeps it.
            if signal.getsignal(signal.SIGINT) == self._on_signal:
                signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count >= 3:
            os._exit(128 + number)  # workers end by their parent's death
        self._stream.interrupt(raises=self._count == 2)
        outer = getattr(self._previous, "__self__", None)
        if isinstance(outer, InterruptGuard) and callable(self._previous):
            self._previous(number, frame)
