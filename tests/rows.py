"""Loaders of many rows at a time for the tests' workers, which import this module: so it must not import jax."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from tests import loaders


class Rows:
    """As `loaders.record`, for all rows of a call, and tells how many those were.

    Args:
        bad: items for which it returns an exception.
        raising: items for which the whole call raises.
        lethal: items over which the process is killed, when it is the process of a worker.
    """

    def __init__(self, bad: Sequence[int] = (), raising: Sequence[int] = (), lethal: Sequence[int] = ()) -> None:
        self.bad = bad
        self.raising = raising
        self.lethal = lethal

    def load_rows(self, items: Sequence[int], arrays: Sequence[Any], seeds: Sequence[int | None]) -> list[Any]:
        """See the class."""
        assert len(items) == len(arrays) == len(seeds)
        outcomes: list[Any] = []
        for item, views, seed in zip(items, arrays, seeds, strict=True):
            if item in self.raising:
                raise ValueError(f"something in a batch with {item} is broken")
            if item in self.lethal:
                os.kill(os.getpid(), signal.SIGKILL)
            if item in self.bad:
                outcomes.append(ValueError(f"item {item} is broken"))
            else:
                outcomes.append(loaders.record(item, views, seed) | {"rows": len(items)})
        return outcomes


class QuietRows:
    """Fills all arrays with the items' numbers and has nothing to tell."""

    def load_rows(self, items: Sequence[int], arrays: Sequence[Any], seeds: Sequence[int | None]) -> None:
        """See the class."""
        for item, views in zip(items, arrays, strict=True):
            loaders.fill(item, views, None)


class RowsAtLast:
    """As `QuietRows`, but each of some items is bad for a number of times. Remembers which calls were made."""

    def __init__(self, times: int, *items: int) -> None:
        self.left = dict.fromkeys(items, times)
        self.calls: list[list[int]] = []

    def load_rows(self, items: Sequence[int], arrays: Sequence[Any], seeds: Sequence[int | None]) -> list[Any]:
        """See the class."""
        self.calls.append(list(items))
        outcomes: list[Any] = []
        for item, views in zip(items, arrays, strict=True):
            if self.left.get(item, 0):
                self.left[item] -= 1
                outcomes.append(ConnectionError(f"item {item} is not there yet"))
            else:
                loaders.fill(item, views, None)
                outcomes.append(None)
        return outcomes


class Returns:
    """Fills, and returns what it was made with."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def load_rows(self, items: Sequence[int], arrays: Sequence[Any], seeds: Sequence[int | None]) -> Any:
        """See the class."""
        QuietRows().load_rows(items, arrays, seeds)
        return self.result


class HangingRows:
    """As `QuietRows`, but a call with one item never comes back."""

    def __init__(self, item: int) -> None:
        self.item = item

    def load_rows(self, items: Sequence[int], arrays: Sequence[Any], seeds: Sequence[int | None]) -> None:
        """See the class."""
        if self.item in items:
            threading.Event().wait()
        QuietRows().load_rows(items, arrays, seeds)


class ThreadsTold:
    """Tells how many threads it may use."""

    def load_rows(self, items: Sequence[int], arrays: Sequence[Any], seeds: Sequence[int | None]) -> list[Any]:
        """See the class."""
        from hydrax_gpu._exec.role import threads_per_worker

        QuietRows().load_rows(items, arrays, seeds)
        return [{"threads": threads_per_worker()} for _ in items]
