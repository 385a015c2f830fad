"""Which worker has which chunks, and which chunks wait for one. Pure, as the core is, whose part it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from hydrax_gpu._engine.messages import Dispatch, Load
from hydrax_gpu._plan import BatchPlan

__all__ = ["Chunk", "Crew", "Lost"]


@dataclass(slots=True, eq=False)
class Chunk:
    """Rows `begin .. end` of a load, which are one task.

    Attributes:
        load: whose rows they are; `pending` of it counts this chunk until whoever took it from the crew says otherwise.
        begin: the first row.
        end: the row behind the last one.
        suspect: whether it is a single row, at which a worker has died, or at that and others.
        refused: whether it is a single row, whose file the device could not decode.
    """

    load: Load
    begin: int
    end: int
    suspect: bool = False
    refused: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.end - self.begin


@dataclass(slots=True, eq=False)
class _Worker:
    began: bool = False  # it, or one in whose place it came, was ready once
    ready: bool = False
    rows_done: int = 0
    chunks: dict[int, Chunk] = field(default_factory=dict[int, Chunk])  # in the order in which it does them


class Lost(NamedTuple):
    """What a worker leaves that is no more.

    Attributes:
        chunks: that it was given and has not finished, in its order.
        items: the indices of their items.
        at: the chunk and the rows that it was at, None when it was at none.
        began: whether it, or one in whose place it came, was ready once.
    """

    chunks: list[Chunk]
    items: list[int]
    at: tuple[Chunk, range] | None
    began: bool


@final
class Crew:
    """The workers, as far as the core knows them, and the queue of what they are to do.

    Args:
        workers: how many.
        together: see `CoreConfig`.
    """

    def __init__(self, workers: int, *, together: bool) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._together = together
        self._queue: deque[Chunk] = deque()
        self._chunk_count = 0

    # The queue.

    def add(self, load: Load, pieces: Sequence[tuple[int, int]]) -> None:
        """Puts rows of a load, as `(begin, end)`, behind all that waits."""
        self._queue.extend(Chunk(load, begin, end) for begin, end in pieces)
        load.pending += len(pieces)

    def add_first(
        self, load: Load, pieces: Sequence[tuple[int, int]], *, suspect: bool = False, refused: bool = False
    ) -> None:
        """Puts rows before all that waits, since they are the oldest; pieces without rows are left out."""
        for begin, end in reversed(pieces):
            if begin < end:
                load.pending += 1
                self._queue.appendleft(Chunk(load, begin, end, suspect, refused))

    def give_back(self, chunk: Chunk) -> None:
        """Puts a chunk that was not begun before all that waits."""
        self._queue.appendleft(chunk)

    def dispatch(self, capacity: int) -> list[Dispatch]:
        """Gives what waits to ready workers, up to `capacity` chunks each, to those first that have the fewest."""
        given: list[Dispatch] = []
        while self._queue and (number := self._least_busy(capacity)) is not None:
            chunk = self._queue.popleft()
            self._chunk_count += 1
            self._workers[number].chunks[self._chunk_count] = chunk
            given.append(Dispatch(number, self._chunk_count, chunk.load, chunk.begin, chunk.end, chunk.refused))
        return given

    def _least_busy(self, capacity: int) -> int | None:
        best: int | None = None
        least = capacity
        for number, worker in enumerate(self._workers):
            if worker.ready and len(worker.chunks) < least:
                best, least = number, len(worker.chunks)
        return best

    # The workers.

    def ready(self, number: int) -> None:
        """A worker has started."""
        worker = self._workers[number]
        worker.ready = worker.began = True

    def done(self, number: int, chunk: int) -> Chunk | None:
        """Takes a chunk from a worker that has finished it; None if it is not that worker's (any more)."""
        worker = self._workers[number]
        found = worker.chunks.pop(chunk, None)
        if found is not None:
            worker.rows_done += found.rows
        return found

    def unsent(self, number: int, chunk: int) -> Chunk | None:
        """Takes a chunk from a worker that it never reached; None if it is not that worker's (any more)."""
        return self._workers[number].chunks.pop(chunk, None)

    def lost(self, number: int, begun: int) -> Lost:
        """Takes all chunks from a worker that is gone, and which has begun `begun` items in its life."""
        worker = self._workers[number]
        self._workers[number] = _Worker(began=worker.began)
        return Lost(list(worker.chunks.values()), _items_of(worker), self._rows_at(worker, begun), worker.began)

    def given_to(self, number: int) -> list[int] | None:
        """The indices of the items that a worker was given and has not finished; None while it is not ready."""
        worker = self._workers[number]
        return _items_of(worker) if worker.ready else None

    def in_work(self, number: int, begun: int) -> tuple[BatchPlan, list[int], int, int] | None:
        """What a worker is at that has begun `begun` items in its life.

        Returns:
            The batch, the items (one, or all that are loaded together), and which item the first of them is (from 1)
            of how many that the worker was given with it; None when the worker has nothing to do.
        """
        found = self._rows_at(self._workers[number], begun)
        if found is None:
            return None
        chunk, rows = found
        plan = chunk.load.plan
        return plan, [plan.indices[row] for row in rows], rows[0] - chunk.begin + 1, chunk.rows

    def _rows_at(self, worker: _Worker, begun: int) -> tuple[Chunk, range] | None:
        ahead = begun - worker.rows_done - 1  # of the rows of its chunks, in their order
        for chunk in worker.chunks.values():
            if 0 <= ahead < chunk.rows:
                row = chunk.begin + ahead
                return chunk, range(chunk.begin, chunk.end) if self._together else range(row, row + 1)
            ahead -= chunk.rows
        return None


def _items_of(worker: _Worker) -> list[int]:
    return [i for c in worker.chunks.values() for i in c.load.plan.indices[c.begin : c.end]]
