"""Numbers of workers and slots that change all the time, whatever is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from hydrax_gpu._engine import autotune
from hydrax_gpu._engine.tuning import Setting, Tuner, Window

__all__ = ["restless"]


@contextmanager
def restless() -> Iterator[list[Setting]]:
    """Has loaders with "auto" change everything as soon as the last change is done; the settings that come of it."""
    named: list[Setting] = []

    def feed(self: Tuner, window: Window) -> Setting:
        workers = 1 + (3 * len(named) + 2) % 4
        slots = 1 + (5 * len(named) + 3) % 6
        self.setting = Setting(min(workers, self.limits.workers), min(slots, self.limits.slots))
        self.why = "restless"
        named.append(self.setting)
        return self.setting

    with ExitStack() as stack:
        stack.enter_context(patch.object(Tuner, "feed", feed))
        stack.enter_context(patch.object(autotune, "_SECONDS", 0.0))
        stack.enter_context(patch.object(autotune, "_BATCHES", 1))
        yield named
