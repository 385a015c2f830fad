"""What the core is told and what it asks for. (What executors tell it is in `_exec.protocol`.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from hydrax_gpu._exec.protocol import Failure, Result, Unreadable, WorkerLeft, WorkerLost, WorkerReady
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.policy import BadItem

__all__ = [
    "Copied",
    "Decode",
    "Decoded",
    "Dismiss",
    "Dispatch",
    "Drop",
    "Effect",
    "Enlist",
    "Fail",
    "Finish",
    "Load",
    "Message",
    "Place",
    "Placed",
    "PlacementFailed",
    "Released",
    "Respawn",
    "Retire",
    "RowFailure",
    "Settled",
    "Start",
    "Stop",
    "Taken",
    "Tune",
    "Unread",
    "Unsent",
    "name_items",
]


def name_items(items: list[int]) -> str:
    """`item 3`, or `items 3, 5, 8 (loaded together)`."""
    if len(items) == 1:
        return f"item {items[0]}"
    return f"items {', '.join(map(str, items))} (loaded together)"


class RowFailure(NamedTuple):
    """What was wrong with an item that was to fill a row; the first of several may have had others in its place."""

    row: int
    item: int
    seed: int | None
    failure: Failure
    lethal: bool = False


@dataclass(slots=True, eq=False)
class Load:
    """One batch on its way: which slot it fills, and what came back so far.

    Attributes:
        plan: what it holds; with substitutes where items were replaced.
        pending: chunks that are not done.
        failures: of its items, and of substitutes for them, in the order they came in.
        substitutes: for each row whose item is bad what is left to try in its place.
        dropped: whether an item is in it that is known to be bad, so that it is not even loaded.
        hopeless: whether a row has no substitute left.
        on_device: whether it was placed in the memory of a device.
        decoded: whether a device has decoded all files of its rows.
        cached: whether its rows are read from a cache, in the layout of that.
        unread: whether that has failed for some of them.
        error: to end the run with when it is due, and not before: other processes end before the same batch then.
        uncached: whether it is left out because it is not in the cache, from which alone its group comes.
    """

    plan: BatchPlan
    slot: int
    generation: int
    pending: int = 0
    additional: list[dict[str, Any] | None] | None = None
    failures: list[RowFailure] = field(default_factory=list[RowFailure])
    substitutes: dict[int, Iterator[tuple[int, int | None]]] = field(
        default_factory=dict[int, "Iterator[tuple[int, int | None]]"]
    )
    dropped: bool = False
    hopeless: bool = False
    on_device: bool = False
    decoded: bool = False
    cached: bool = False
    unread: bool = False
    uncached: bool = False
    error: Exception | None = None

    def bad_items(self) -> list[BadItem]:
        """The items that could not be loaded."""
        plan = self.plan
        return [
            BadItem(
                item=item,
                group=plan.group,
                validation=plan.validation,
                epoch=plan.group_pass,
                error=failure.error,
                traceback=failure.traceback,
                count=1,
                lethal=lethal,
            )
            for _, item, _, failure, lethal in sorted(self.failures, key=lambda entry: entry.row)
        ]


class Start(NamedTuple):
    """Begin to plan and load."""


class Released(NamedTuple):
    """The last view of a slot's lease is gone."""

    slot: int
    generation: int


class Placed(NamedTuple):
    """A batch was handed to the outbox.

    `lent` tells whether its arrays share the slot's memory, `copying` whether that is memory of a device to which the
    host's is being copied: then `Copied` follows.
    """

    slot: int
    generation: int
    lent: bool
    copying: bool = False


class Copied(NamedTuple):
    """A slot's host memory has been copied to the device."""

    slot: int
    generation: int


class Decoded(NamedTuple):
    """A device has decoded the files in a slot, but for those of the rows in `refused`, or `error` kept it from that.

    `refused` tells why for each row.
    """

    slot: int
    generation: int
    refused: Mapping[int, str]
    error: Exception | None = None


class PlacementFailed(NamedTuple):
    """Placing a batch raised."""

    slot: int
    generation: int
    exception: Exception


class Taken(NamedTuple):
    """The consumer took batches out of the outbox."""

    batches: int


class Settled(NamedTuple):
    """What batches waited for that may come from a cache is known: something was written, or will never be, or the
    processes of a job have agreed on what is there, unless `error` kept them from that."""

    error: Exception | None = None


class Tune(NamedTuple):
    """From now on there are to be so many workers, and so many slots in use; each at least 1."""

    workers: int
    slots: int


class Stop(NamedTuple):
    """Plan and place nothing any more."""


class Unsent(NamedTuple):
    """A chunk could not be sent to its worker, because of the items that `failures` are about."""

    worker: int
    chunk: int
    failures: tuple[Failure, ...]


Message: TypeAlias = (
    Start
    | Released
    | Placed
    | Copied
    | Decoded
    | PlacementFailed
    | Taken
    | Settled
    | Tune
    | Stop
    | Result
    | Unsent
    | Unreadable
    | WorkerReady
    | WorkerLost
    | WorkerLeft
)


class Dispatch(NamedTuple):
    """Send rows `begin .. end` of a load to a worker, as chunk number `chunk`."""

    worker: int
    chunk: int
    load: Load
    begin: int
    end: int
    refused: bool = False
    """Whether a device has refused the file of its one row, so that the worker must decode it."""


class Decode(NamedTuple):
    """All files of a slot are there: let the device decode them, and say `Decoded`."""

    load: Load


class Place(NamedTuple):
    """All rows are there: make JAX arrays of the slot and put the batch into the outbox."""

    load: Load


class Drop(NamedTuple):
    """This batch is left out: tell the consumer in its place."""

    load: Load


class Unread(NamedTuple):
    """These rows of a batch were to be read from its cache, and could not be; `plan` is what it was to hold then."""

    load: Load
    rows: list[int]
    plan: BatchPlan


class Retire(NamedTuple):
    """A batch in device memory is gone: see to it that nothing is written there before its last reader is done."""

    slot: int


class Respawn(NamedTuple):
    """A worker was lost: start another in its place, with `again`. `suspects` are the items that it was at."""

    lost: WorkerLost
    items: list[int]
    suspects: list[int]
    again: bool = True
    """Whether it would still be wanted."""


class Enlist(NamedTuple):
    """Start a worker of this number, which has none."""

    worker: int


class Dismiss(NamedTuple):
    """End the worker of this number, which has nothing to do."""

    worker: int


class Fail(NamedTuple):
    """Nothing more will come: put this error into the outbox."""

    error: Exception


class Finish(NamedTuple):
    """Nothing more will come: the end was reached."""


Effect: TypeAlias = Dispatch | Decode | Place | Drop | Unread | Retire | Respawn | Enlist | Dismiss | Fail | Finish
