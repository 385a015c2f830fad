"""How many workers there were when, for means over a stretch of time."""

from __future__ import annotations

__all__ = ["Employed"]


class Employed:
    """The number of workers over time.

    Args:
        workers: how many there are in the beginning.
    """

    def __init__(self, workers: int) -> None:
        self._changes: list[tuple[int, int]] = [(0, workers)]

    def change(self, at: int, workers: int) -> None:
        """There are so many from `at` on, which is after all changes so far."""
        self._changes.append((at, workers))

    @property
    def now(self) -> int:
        """How many there are."""
        return self._changes[-1][1]

    def mean(self, begin: int, end: int) -> float:
        """How many there were from `begin` to `end`, as a mean."""
        if len(self._changes) == 1 or end <= begin:
            return self.now
        ends = [*(at for at, _ in self._changes[1:]), end]
        area = sum(
            workers * max(0, min(until, end) - max(since, begin))
            for (since, workers), until in zip(self._changes, ends, strict=True)
        )
        return area / (end - begin)
