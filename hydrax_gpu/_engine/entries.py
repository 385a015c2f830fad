"""What the engine leaves for the consumer: batches, and what stands in the place of one."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.policy import BadItem

__all__ = ["END", "Delivery", "Dropped", "Entry", "Failed", "Lent", "WorkerDeath"]


class Lent(NamedTuple):
    """Weak references to a batch, and to those of its arrays that share a slot's memory."""

    slot: int
    batch: weakref.ref[Any]
    arrays: dict[str, weakref.ref[Any]]

    def alive(self) -> list[tuple[int, str, Any]]:
        """`(slot, what, object)`: the batch, if it exists, or those of its arrays that do without it."""
        batch = self.batch()
        arrays = [(name, array) for name, reference in self.arrays.items() if (array := reference()) is not None]
        # A batch that was given others by `Batch.cache` does not hold these any more.
        if batch is not None and arrays:
            return [(self.slot, repr(batch), batch)]
        return [(self.slot, f"array {name!r} of a batch that is gone", array) for name, array in arrays]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A batch in the outbox.

    Attributes:
        position: its position in the stream.
        batch: the batch.
        bad: the items that were replaced in it.
        lent: references to it if it shares a slot's memory.
        items: number of items in it.
    """

    position: int
    batch: Any
    bad: Sequence[BadItem] = ()
    lent: Lent | None = None
    items: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """Stands in the outbox in the place of a batch that was left out.

    `bad` are the items that failed now; it is empty when all that are bad in it were known to be.
    """

    plan: BatchPlan
    bad: Sequence[BadItem]


@dataclass(frozen=True, slots=True)
class Failed:
    """The last entry of an outbox whose loader has failed."""

    error: Exception


class _End:
    """The last entry of an outbox whose stream has ended, and what wakes a waiting consumer."""


END = _End()
Entry: TypeAlias = Delivery | Dropped | Failed | _End


class WorkerDeath(NamedTuple):
    """A worker that ended by itself, and in whose place another was started.

    Attributes:
        pid: its process id.
        exitcode: its exit status; negative for the signal that ended it, None when unknown.
        items: indices of the items that it had been given and not finished; they were given to others.
        suspect: index of the item that it was at; None if it was at none, or at several that are loaded in one call.
    """

    pid: int
    exitcode: int | None
    items: tuple[int, ...]
    suspect: int | None
