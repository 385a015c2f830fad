"""The engine's own thread."""

from __future__ import annotations

import logging
import signal
import threading

from hydrax_gpu._engine.messages import Stop
from hydrax_gpu._engine.runner import Failed, Runner

__all__ = ["EngineThread"]

_log = logging.getLogger("hydrax_gpu")


class EngineThread:
    """Runs a runner until it is closed."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hydrax_gpu-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stops the engine and waits for it and all workers to end. Idempotent."""
        self._closing = True
        self._runner.inbox.post(Stop())
        self._runner.inbox.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        # Signals are for the main thread, and workers are born with this thread's mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        runner = self._runner
        try:
            runner.start()
            while not self._closing:
                runner.pump(None)
        except Exception as error:
            _log.exception("the engine of a Dataloader has failed; this is a defect of hydrax_gpu")
            runner.outbox.put(Failed(error))
        finally:
            runner.close()
