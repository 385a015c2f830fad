"""What the core is told and what it asks for. (What executors tell it is in `_exec.protocol`.)"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from hydrax_gpu._exec.protocol import Failure, Result, WorkerLost, WorkerReady
from hydrax_gpu._plan import BatchPlan

__all__ = [
    "Dispatch",
    "Effect",
    "Fail",
    "Finish",
    "Load",
    "Message",
    "Place",
    "Placed",
    "PlacementFailed",
    "Released",
    "Start",
    "Stop",
    "Taken",
]


@dataclass(slots=True, eq=False)
class Load:
    """One batch on its way: which slot it fills, and what came back so far."""

    plan: BatchPlan
    slot: int
    generation: int
    pending: int = 0
    """Chunks that are not done."""
    additional: list[dict[str, Any] | None] | None = None
    failures: list[tuple[int, Failure]] = field(default_factory=list[tuple[int, Failure]])
    """`(row, failure)` in the order they came in."""


class Start(NamedTuple):
    """Begin to plan and load."""


class Released(NamedTuple):
    """The last view of a slot's lease is gone."""

    slot: int
    generation: int


class Placed(NamedTuple):
    """A batch was handed to the outbox. `lent` tells whether its arrays share the slot's memory."""

    slot: int
    generation: int
    lent: bool


class PlacementFailed(NamedTuple):
    """Placing a batch raised."""

    slot: int
    generation: int
    exception: Exception


class Taken(NamedTuple):
    """The consumer took batches out of the outbox."""

    batches: int


class Stop(NamedTuple):
    """Plan and place nothing any more."""


Message: TypeAlias = Start | Released | Placed | PlacementFailed | Taken | Stop | Result | WorkerReady | WorkerLost


class Dispatch(NamedTuple):
    """Send rows `begin .. end` of a load to a worker, as chunk number `chunk`."""

    worker: int
    chunk: int
    load: Load
    begin: int
    end: int


class Place(NamedTuple):
    """All rows are there: make JAX arrays of the slot and put the batch into the outbox."""

    load: Load


class Fail(NamedTuple):
    """Nothing more will come: put this error into the outbox."""

    error: Exception


class Finish(NamedTuple):
    """Nothing more will come: the end was reached."""


Effect: TypeAlias = Dispatch | Place | Fail | Finish
