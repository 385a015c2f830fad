"""The engine's mind: `step(message) → effects`.

All of a loader's mutable state is here, and only here. The core does no I/O, knows no clock and starts no thread;
whoever drives it carries the effects out and tells it what happened. So any order of messages can be tried in a test,
and what holds there holds in the running loader.

What it keeps true:
- at most `depth` batches exist: every one between its planning and its release owns a slot;
- a slot is filled by workers only while it is FILLING, and read only after the last of its chunks is done;
- batches are placed in the plan's order (any order with `deterministic=False`), each exactly once;
- after `Fail`, `Finish` or `Stop`, nothing more is dispatched or placed.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from hydrax_gpu._engine.messages import (
    Dispatch,
    Effect,
    Fail,
    Finish,
    Load,
    Message,
    Place,
    Placed,
    PlacementFailed,
    Released,
    Start,
    Stop,
    Taken,
)
from hydrax_gpu._exec.protocol import Result, WorkerLost, WorkerReady
from hydrax_gpu._mem.slots import SlotState, SlotTable
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.errors import LoaderError, WorkerDied, WorkerStartError

__all__ = ["Core", "CoreConfig"]

_OUTSTANDING = 2
"""Chunks given to a worker: one it works at, one so that it need not wait for us."""

_OUTSTANDING_QUICK = 16
"""The same for chunks so quick that all of them together take less than `_QUICK_NS`: fewer, larger messages."""

_QUICK_NS = 1_000_000

_CHUNK_NS = 4_000_000
"""Wanted duration of a chunk. Long against the cost of a message (some 20 µs), short against a batch's wait."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What does not change during a run.

    Attributes:
        plan: position in the stream → what the batch there holds; pure.
        begin: first position.
        end: position to stop before, None for an endless stream.
        skip: positions from `begin` on that were handed out before (by an out-of-order run that is resumed).
        depth: number of slots, and bound on batches waiting in the outbox.
        workers: number of workers.
        ordered: whether batches leave in the plan's order.
        whole_batches: never split a batch among chunks (an executor without parallelism gains nothing by it).
    """

    plan: Callable[[int], BatchPlan]
    begin: int
    end: int | None
    skip: Collection[int]
    depth: int
    workers: int
    ordered: bool = True
    whole_batches: bool = False


@dataclass(slots=True, eq=False)
class _Chunk:
    load: Load
    begin: int
    end: int


@dataclass(slots=True, eq=False)
class _Worker:
    ready: bool = False
    lost: bool = False
    chunks: dict[int, _Chunk] = field(default_factory=dict[int, _Chunk])


class Core:
    """The state of a running loader; see the module's docstring."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self.slots = SlotTable(config.depth)
        self._workers = [_Worker() for _ in range(config.workers)]
        self._next = config.begin
        self._queue: deque[_Chunk] = deque()
        self._loads: dict[int, Load] = {}  # slot → the load that owns it, until it is released
        self._order: deque[Load] = deque()  # planned and not placed, in the plan's order
        self._chunk_count = 0
        self._item_ns = 0.0  # running mean of an item's cost; 0 while unknown
        self._capacity = _OUTSTANDING
        self._unread = 0  # batches in the outbox
        self.running = False
        self.finished = False

    # What a driver may look at.

    @property
    def waits_for_consumer(self) -> bool:
        """Whether a finished batch is held back because the outbox is full."""
        return self._unread >= self._config.depth and any(load.pending == 0 for load in self._order)

    @property
    def lends(self) -> bool:
        """Whether some slot is lent."""
        return any(self.slots.state(slot) is SlotState.LENT for slot in range(self._config.depth))

    @property
    def starved(self) -> bool:
        """Whether only released slots can make progress: all are lent, nothing is in work."""
        return self.running and all(self.slots.state(slot) is SlotState.LENT for slot in range(self._config.depth))

    def work_in_progress(self) -> list[tuple[int, list[int]]]:
        """For each worker its number and the indices of the items that it has been given."""
        return [(number, self._items_of(worker)) for number, worker in enumerate(self._workers)]

    # The one entry.

    def step(self, message: Message) -> list[Effect]:
        """Takes one message in and returns what is to be done now, in order."""
        effects: list[Effect] = []
        match message:
            case Result():
                self._on_result(message)
            case Released(slot, generation):
                if self.slots.release(slot, generation):
                    del self._loads[slot]
            case Taken(batches):
                self._unread -= batches
            case Placed(slot, generation, lent):
                self._on_placed(slot, generation, lent)
            case WorkerReady(worker=number):
                self._workers[number].ready = True
            case WorkerLost():
                return self._on_lost(message)
            case PlacementFailed(_, _, exception):
                return self._fail(exception)
            case Start():
                self.running = not self.finished
            case Stop():
                self.running = False
                self.finished = True
        if self.running:
            self._place(effects)
            self._plan()
            self._dispatch(effects)
        return effects

    def _on_result(self, result: Result) -> None:
        chunk = self._workers[result.worker].chunks.pop(result.chunk, None)
        if chunk is None:
            return  # of a worker that was given up
        load, rows = chunk.load, chunk.end - chunk.begin
        load.pending -= 1
        cost = result.busy_ns / rows
        self._item_ns = cost if not self._item_ns else 0.8 * self._item_ns + 0.2 * cost
        quick = int(_QUICK_NS / (1 + rows * self._item_ns))
        self._capacity = max(_OUTSTANDING, min(_OUTSTANDING_QUICK, quick))
        if result.additional is not None:
            rows_before: list[dict[str, Any] | None] = load.additional or [None] * load.plan.valid
            rows_before[chunk.begin : chunk.end] = result.additional
            load.additional = rows_before
        for failure in result.failures:
            load.failures.append((chunk.begin + failure.offset, failure))
        if load.pending == 0:
            self.slots.filled(load.slot)

    def _on_placed(self, slot: int, generation: int, lent: bool) -> None:
        if not lent and self.slots.release(slot, generation):
            del self._loads[slot]

    def _on_lost(self, lost: WorkerLost) -> list[Effect]:
        worker = self._workers[lost.worker]
        if worker.lost:
            return []
        worker.lost = True
        if lost.error is not None:
            error = WorkerStartError(f"a worker could not start: {lost.error}\n\n{lost.traceback}".rstrip())
            error.__cause__ = lost.exception
        else:
            error = WorkerDied(lost.pid, lost.exitcode, self._items_of(worker))
        return self._fail(error)

    def _fail(self, error: Exception) -> list[Effect]:
        if self.finished:
            return []
        self.running = False
        self.finished = True
        return [Fail(error)]

    def _items_of(self, worker: _Worker) -> list[int]:
        return [i for c in worker.chunks.values() for i in c.load.plan.indices[c.begin : c.end]]

    # Placing.

    def _place(self, effects: list[Effect]) -> None:
        while self._unread < self._config.depth and (load := self._next_complete()) is not None:
            if load.failures:
                effects.extend(self._fail(_loader_error(load)))
                return
            # LENT from here on: its arrays may be released before the driver gets round to saying Placed.
            self.slots.lend(load.slot)
            self._unread += 1
            effects.append(Place(load))
        if not self._order and self._exhausted():
            self.running = False
            self.finished = True
            effects.append(Finish())

    def _next_complete(self) -> Load | None:
        if not self._order:
            return None
        if self._order[0].pending == 0:
            return self._order.popleft()
        if not self._config.ordered:
            for load in self._order:
                if load.pending == 0:
                    self._order.remove(load)
                    return load
        return None

    # Planning.

    def _exhausted(self) -> bool:
        while self._next in self._config.skip:
            self._next += 1
        return self._config.end is not None and self._next >= self._config.end

    def _plan(self) -> None:
        while self.slots.free_count and not self._exhausted():
            plan = self._config.plan(self._next)
            self._next += 1
            taken = self.slots.take()
            assert taken is not None
            load = Load(plan, *taken)
            self._loads[load.slot] = load
            self._order.append(load)
            for begin, end in _split(plan.valid, self._parts(plan.valid)):
                self._queue.append(_Chunk(load, begin, end))
                load.pending += 1

    def _parts(self, rows: int) -> int:
        """How many chunks to cut a batch into: enough for all workers, more if items are slow."""
        config = self._config
        if config.whole_batches:
            return 1
        if not self._item_ns:
            return min(rows, config.workers)  # the first batches: all hands, for an early first batch
        # Of depth slots, one is with the consumer; the others together should keep every worker busy.
        parts = math.ceil(config.workers / max(1, config.depth - 1))
        if parts > 1:
            parts *= 2  # batches then end together with little waiting for the slowest chunk
        return min(rows, max(parts, round(rows * self._item_ns / _CHUNK_NS)))

    # Dispatching.

    def _dispatch(self, effects: list[Effect]) -> None:
        while self._queue and (number := self._least_busy()) is not None:
            chunk = self._queue.popleft()
            self._chunk_count += 1
            self._workers[number].chunks[self._chunk_count] = chunk
            effects.append(Dispatch(number, self._chunk_count, chunk.load, chunk.begin, chunk.end))

    def _least_busy(self) -> int | None:
        best: int | None = None
        least = self._capacity
        for number, worker in enumerate(self._workers):
            if worker.ready and not worker.lost and len(worker.chunks) < least:
                best, least = number, len(worker.chunks)
        return best


def _split(rows: int, parts: int) -> list[tuple[int, int]]:
    """`rows` in `parts` pieces as equal as can be."""
    edges = [rows * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(edges))


def _loader_error(load: Load) -> LoaderError:
    row, failure = min(load.failures, key=lambda entry: entry[0])
    plan = load.plan
    error = LoaderError(
        item_index=plan.indices[row],
        group_index=plan.group,
        validation=plan.validation,
        seed=None if plan.seeds is None else plan.seeds[row],
        epoch=plan.group_pass,
        error=failure.error,
        worker_traceback=failure.traceback,
    )
    error.__cause__ = failure.exception
    return error
