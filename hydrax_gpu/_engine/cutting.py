"""How large the chunks are that a batch is cut into, and how many a worker is given at a time."""

from __future__ import annotations

import itertools
import math

__all__ = ["Cutter", "split"]

_OUTSTANDING = 2
"""Chunks given to a worker: one it works at, one so that it need not wait for us."""

_OUTSTANDING_QUICK = 16
"""The same for chunks so quick that all of them together take less than `_QUICK_NS`: fewer, larger messages."""

_QUICK_NS = 1_000_000

_CHUNK_NS = 32_000_000
"""Wanted duration of a chunk. A chunk costs the main process some 200 µs where it sleeps in between (woken up, with
cold caches): at 4 ms it took 90 µs of its time for each photograph, at 16 ms 49 µs and at 32 ms 36 µs."""


class Cutter:
    """Learns what items cost.

    Args:
        workers: number of workers.
        depth: number of slots.
        whole_batches: see `CoreConfig`.
        together: see `CoreConfig`.
    """

    def __init__(self, workers: int, depth: int, *, whole_batches: bool, together: bool) -> None:
        self._workers = workers
        self._depth = depth
        self._whole_batches = whole_batches
        self._together = together
        self._item_ns = 0.0  # running mean of an item's cost; 0 while unknown
        self.capacity = _OUTSTANDING
        """How many chunks a worker is given at a time."""

    def fit(self, workers: int, depth: int) -> None:
        """So many workers and slots there are from now on."""
        self._workers, self._depth = workers, depth

    def learn(self, rows: int, ns: int) -> None:
        """A chunk of so many rows has taken so long to load."""
        cost = ns / rows
        self._item_ns = cost if not self._item_ns else 0.8 * self._item_ns + 0.2 * cost
        quick = int(_QUICK_NS / (1 + rows * self._item_ns))
        self.capacity = max(_OUTSTANDING, min(_OUTSTANDING_QUICK, quick))

    def pieces(self, rows: int) -> list[tuple[int, int]]:
        """A batch cut into chunks: enough for all workers, more if items are slow."""
        return split(rows, self._parts(rows))

    def _parts(self, rows: int) -> int:
        if self._whole_batches:
            return 1
        if not self._item_ns:
            return min(rows, self._workers)  # the first batches: all hands, for an early first batch
        # Of depth slots, one is with the consumer; the others together should keep every worker busy.
        parts = math.ceil(self._workers / max(1, self._depth - 1))
        if self._together:
            return min(rows, parts)
        if parts > 1:
            parts *= 2  # batches then end together with little waiting for the slowest chunk
        return min(rows, max(parts, round(rows * self._item_ns / _CHUNK_NS)))


def split(rows: int, parts: int) -> list[tuple[int, int]]:
    """`rows` in `parts` pieces as equal as can be."""
    edges = [rows * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(edges))
