"""What workers are given: stretches of a batch's rows, and who is at which of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydrax_gpu._engine.messages import Load

__all__ = ["Chunk", "Worker"]


@dataclass(slots=True, eq=False)
class Chunk:
    """Rows `begin .. end` of a load, which one worker does.

    Attributes:
        suspect: a single row, at which a worker has died, or at that and others.
        refused: a single row, whose file the device could not decode.
    """

    load: Load
    begin: int
    end: int
    suspect: bool = False
    refused: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, as the core knows it.

    Attributes:
        began: it, or one in whose place it came, was ready once.
        ready: whether it can be given something.
        rows_done: in all chunks that it has done.
        chunks: by their numbers, in the order in which it does them.
    """

    began: bool = False
    ready: bool = False
    rows_done: int = 0
    chunks: dict[int, Chunk] = field(default_factory=dict[int, Chunk])

    @property
    def items(self) -> list[int]:
        """The indices of the items that it was given and has not finished."""
        return [i for c in self.chunks.values() for i in c.load.plan.indices[c.begin : c.end]]

    def rows_at(self, begun: int, *, together: bool) -> tuple[Chunk, range] | None:
        """The chunk that it is at when it has begun so many rows in its life, and the rows: one, unless chunks are
        loaded together; None when it has nothing to do."""
        ahead = begun - self.rows_done - 1  # of the rows of its chunks, in their order
        for chunk in self.chunks.values():
            if 0 <= ahead < chunk.end - chunk.begin:
                row = chunk.begin + ahead
                return chunk, range(chunk.begin, chunk.end) if together else range(row, row + 1)
            ahead -= chunk.end - chunk.begin
        return None
