"""The workers as the core knows them: what each has to do, how many there are to be, and who comes and goes for that.

A number is given to one worker at a time. It comes when it is wanted (`Enlist`), takes chunks once it is ready, and
takes none any more when it is not wanted; with the last of those it has, it is dismissed (`Dismiss`). Only when it is
known to have left can its number be given to another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hydrax_gpu._engine.messages import Dismiss, Effect, Enlist, Load

__all__ = ["Chunk", "Crew", "Worker"]


@dataclass(slots=True, eq=False)
class Chunk:
    """Rows `begin .. end` of a load, for one worker."""

    load: Load
    begin: int
    end: int
    suspect: bool = False  # a single row, at which a worker has died, or at that and others
    refused: bool = False  # a single row, whose file the device could not decode


@dataclass(slots=True, eq=False)
class Worker:
    """One worker."""

    began: bool = False  # it, or one in whose place it came, was ready once
    present: bool = False  # it was enlisted, and has not left
    leaving: bool = False  # it was dismissed
    ready: bool = False
    rows_done: int = 0
    chunks: dict[int, Chunk] = field(default_factory=dict[int, Chunk])  # in the order in which it does them


class Crew:
    """Who works.

    Args:
        most: how many workers there can be.
        wanted: how many there are, from the start.
        together: see `CoreConfig`.
    """

    def __init__(self, most: int, wanted: int, *, together: bool) -> None:
        self.wanted = wanted
        self._together = together
        self._workers = [Worker(present=number < wanted) for number in range(most)]

    def __len__(self) -> int:
        return len(self._workers)

    def __getitem__(self, number: int) -> Worker:
        return self._workers[number]

    def want(self, count: int) -> list[Effect]:
        """There are to be `count` workers, at least 1."""
        self.wanted = count
        return [effect for number in range(len(self._workers)) for effect in self.suit(number)]

    def ready(self, number: int) -> list[Effect]:
        """A worker has started."""
        worker = self._workers[number]
        worker.ready = worker.began = True
        return self.suit(number)

    def replace(self, number: int) -> bool:
        """A worker is lost. Returns whether another is to come in its place, which is the driver's to see to."""
        worker = self._workers[number]
        again = number < self.wanted and not worker.leaving
        self._workers[number] = Worker(began=worker.began, present=again)
        return again

    def left(self, number: int) -> list[Effect]:
        """A worker that was dismissed has ended, or one that was enlisted will not come."""
        self._workers[number] = Worker(began=self._workers[number].began)
        return self.suit(number)

    def suit(self, number: int) -> list[Effect]:
        """Sees to it that there is a worker of this number, or none, when nothing stands in the way of that."""
        worker = self._workers[number]
        if number < self.wanted:
            if not worker.present:
                worker.present = True
                return [Enlist(number)]
        elif worker.ready and not worker.chunks:
            worker.leaving, worker.ready = True, False
            return [Dismiss(number)]
        return []

    def least_busy(self, capacity: int) -> int | None:
        """The worker with the fewest chunks, if that are less than `capacity`."""
        best: int | None = None
        least = capacity
        for number in range(self.wanted):
            worker = self._workers[number]
            if worker.ready and len(worker.chunks) < least:
                best, least = number, len(worker.chunks)
        return best

    # What they are at.

    def given_to(self, number: int) -> list[int] | None:
        """The indices of the items that a worker was given and has not finished; None while it is not ready."""
        worker = self._workers[number]
        return self.items_of(worker) if worker.ready else None

    def items_of(self, worker: Worker) -> list[int]:
        """The indices of the items that a worker was given and has not finished."""
        return [i for c in worker.chunks.values() for i in c.load.plan.indices[c.begin : c.end]]

    def rows_at(self, worker: Worker, begun: int) -> tuple[Chunk, range] | None:
        """The chunk that a worker is at which has begun `begun` items in its life, and of its rows those; or None."""
        ahead = begun - worker.rows_done - 1  # of the rows of its chunks, in their order
        for chunk in worker.chunks.values():
            if 0 <= ahead < chunk.end - chunk.begin:
                row = chunk.begin + ahead
                return chunk, range(chunk.begin, chunk.end) if self._together else range(row, row + 1)
            ahead -= chunk.end - chunk.begin
        return None
