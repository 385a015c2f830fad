"""What the core is told once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hydrax_gpu._engine.cached import Agreed, Caching, NoCaching
from hydrax_gpu._engine.faults import FaultRules
from hydrax_gpu._plan import BatchPlan

__all__ = ["CoreConfig"]


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What does not change during a run.

    Attributes:
        plan: position in the stream → what the batch there holds; pure.
        begin: first position.
        end: position to stop before, None for an endless stream.
        skip: positions from `begin` on that were handed out before (by an out-of-order run that is resumed).
        depth: how many slots there can be; those in use are the bound on batches waiting in the outbox, too.
        workers: how many workers there can be.
        first_depth: how many of the slots are used until `Tune` says otherwise; None for all.
        first_workers: how many of the workers there are from the start, until then; None for all.
        ordered: whether batches leave in the plan's order.
        whole_batches: never split a batch among chunks (an executor without parallelism gains nothing by it).
        together: a chunk's rows are loaded in one call, by a loader that wants many of them. So chunks are as large as
            can be with all workers busy, and nobody can tell at which of a chunk's items a worker is.
        faults: what to do about bad items and lost workers.
        caching: which batches are in a cache.
        agreed: what to do about entries of a cache that turn out to be damaged, where several processes have agreed to
            read them. None where there is one process, which loads the batch instead.
        on_device: whether a device decodes files of a batch; asked when its rows are there.
    """

    plan: Callable[[int], BatchPlan]
    begin: int
    end: int | None
    skip: Collection[int]
    depth: int
    workers: int
    first_depth: int | None = None
    first_workers: int | None = None
    ordered: bool = True
    whole_batches: bool = False
    together: bool = False
    faults: FaultRules = field(default_factory=FaultRules)
    caching: Caching = field(default_factory=NoCaching)
    agreed: Agreed | None = None
    on_device: Callable[[BatchPlan], bool] = lambda plan: False
