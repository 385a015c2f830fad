"""Where the time goes: takes the time of what the runner does, and says what each wait of the consumer was for.

Nothing is decided here, and nothing here is needed: the core knows no clock, and what is measured goes into the report
and the trace alone.

A wait is put down to what its own batch was at meanwhile, in the order of its way: no slot, planning, a worker's queue,
loading, placing. What is left is put down to what the engine did instead, and to nobody in the end (`HANDOVER`). So a
stage that is slow, but hidden behind another, is not blamed.

Of quick batches, one in so many is measured in full, and counts that many times (`_engine.sampling`). Of all of them
there are the numbers of batches and items, waits and steps, loading and decoding, and fences, with how long they took.
Of a batch that is passed over nothing is called here but the plan: the runner and the consumer add to a few numbers
that are there, and what follows from these is worked out when it is asked for (`StageClock.settle`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from hydrax_gpu._engine.counting import Counters, Lent, Waits, Way
from hydrax_gpu._engine.employed import Employed
from hydrax_gpu._engine.sampling import cost, interval
from hydrax_gpu._engine.storage import WorkerUse
from hydrax_gpu._engine.tracing import TraceSink
from hydrax_gpu._mem.slots import SlotState, SlotTable
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._stages import Cause, Kind, Part, Stages, Totals

__all__ = ["StageClock"]

_LOOK_NS = 1_000_000
"""The slots are counted at most this often; what they were in between is what they are then."""
_LOOK_IN_WAIT_NS = 200_000
"""The same while the consumer waits for a batch that is measured in full."""

_SNAPSHOT_NS = 1_000_000_000
_SNAPSHOTS = 10

_SOON = 32
"""After so many batches it is first asked whether all of them can be measured in full."""
_LONGEST = 64
"""So many batches are passed over, and no more, until it is asked whether they are as quick as they were."""
_SLOW_NS = 100_000_000
"""At that time a batch nobody need ask what that costs."""

# Plain integers and names of this module: an enumeration's members cost a call each time that they are looked up.
_PLAN, _QUEUE, _READ, _LOAD, _DECODE, _PLACEMENT, _COPY, _FENCE, _WAIT, _STEP = map(int, Kind)
_STATES = tuple(SlotState[name] for name in ("FILLING", "FULL", "LENT", "COPYING", "RETIRED"))
_PARTS = tuple(part.name.lower() for part in Part)

_HANDOVER = int(Cause.HANDOVER)
_ENGINE = (_PLAN, _PLACEMENT, _FENCE)


class StageClock:
    """Keeps the times of a loader.

    Args:
        workers: number of workers.
        ordered: whether batches are handed out in the order of their positions.
        clock: nanoseconds, of which zero does not matter.
        cost_ns: what measuring one batch in full costs; found out when it is first needed, if it is None.
        use: looks at the workers from outside.

    `wait` and `leave` are called by the consumer, the others by whoever drives the runner, with its lock.

    Between two quick batches a call takes many times what it takes in a row, so what need not be called is not: `leave`
    for a position before `due`, `wait` before `await_from` batches, `dispatched` and `placed` (and the clock before
    them) and `look` while it is not `active`, and `result` of what was loaded without `decode` or `chunks`.
    """

    def __init__(
        self,
        workers: int,
        *,
        ordered: bool = True,
        clock: Callable[[], int] = time.perf_counter_ns,
        cost_ns: float | None = None,
        use: WorkerUse | None = None,
    ) -> None:
        self.clock = clock
        self.totals = Totals()
        self.counters = Counters()
        self.waits = Waits()
        self.lent: Mapping[int, Lent] = {}  # the batches that were handed out, by the slots that they share
        self.employed = Employed(workers)
        self._use = WorkerUse() if use is None else use
        self._ordered = ordered
        self.trace: TraceSink | None = None  # where single events go as well
        self._cost_ns = cost_ns
        self._every = 1
        self.active = True  # whether some batch is on its way, or waited for, that is measured in full
        self._full = False  # whether the consumer waits for such a batch
        self.ways: dict[int, Way] = {}  # by position
        # → worker, position, items, when it was dispatched; the latter three are of those that are measured in full,
        # and the position is -1 for others that are read from a cache
        self.chunks: dict[int, tuple[int, int, int, int]] = {}
        self._cached: set[int] = set()  # those of them that are read from a cache
        self._copies: dict[int, tuple[int, str, int]] = {}  # by slot
        self._pids: dict[int, int] = {}
        self._looked = 0
        self.batches = 0  # these two are written by `next()` itself
        self.items = 0
        self.due = 0  # the next position that it is to tell us of
        self.await_from = 0  # after how many batches that is the one it waits for
        self._last = -1, 0  # the last position of those, and how many batches there were then
        self._step_since = 0
        self._step_of: tuple[str, int] = "", 0
        self._held = 0
        self._first_wait = 0  # when the first wait since the last batch began
        self._waited_before = 0
        self._starved = [0] * len(Cause)  # in these waits
        self._engine = [0] * len(Kind)  # what the engine has done itself, as far as it was measured, by `Kind`
        self._engine_before = [0] * len(_ENGINE)  # when these waits began
        self._base: Totals | None = None  # at the first batch: what was before is start-up
        self._recent: deque[Totals] = deque(maxlen=_SNAPSHOTS)

    # The engine's side.

    def timed(self, plan: Callable[[int], BatchPlan]) -> Callable[[int], BatchPlan]:
        """A plan function whose calls are measured; a batch has its slot when it is planned."""

        def planned(position: int) -> BatchPlan:
            if position % self._every:
                if not self._full:
                    return plan(position)
                begin = self.clock()
                result = plan(position)
                self._engine[_PLAN] += self.clock() - begin
                return result
            begin = self.clock()
            result = plan(position)
            end = self.clock()
            weight = self._every
            self._add(_PLAN, end - begin, weight)
            self._engine[_PLAN] += end - begin
            kind = "validation" if result.validation else "batch"
            way = self.ways[position] = Way(begin, end, f"{kind} {position}", weight)
            self._activate(begin)
            if self.trace is not None:
                self.trace.span("engine", "plan", begin, end, {"batch": way.number, "items": result.valid})
            return result

        return planned

    def dispatched(
        self, worker: int, chunk: int, plan: BatchPlan, items: int, begin: int, *, cached: bool = False
    ) -> None:
        """A chunk was given to a worker; looking up its descriptors, and the like, has taken since `begin`.

        `begin` is 0 while it is not `active`. `cached` tells whether the worker is to read it
        from a cache.
        """
        if cached:
            self._cached.add(chunk)
            self.chunks[chunk] = worker, -1, 0, 0
        way = self.ways.get(plan.position)
        if way is None:
            if begin and self._full:
                self._engine[_PLAN] += self.clock() - begin
            return
        now = way.sent = self.clock()
        self.totals.ns[_PLAN] += (now - begin) * way.weight
        self._engine[_PLAN] += now - begin
        self.chunks[chunk] = worker, plan.position, items, now - begin
        if self.trace is not None:
            self.trace.span("engine", "send", begin, now, {"batch": way.number, "items": items, "worker": worker})

    def _activate(self, now: int) -> None:
        if not self.active:
            self.active = True
            self._looked = now  # what was before nobody has seen

    def ready(self, worker: int, pid: int, thread: int = 0) -> None:
        """A worker has started, in a process or on a thread of this one."""
        self._pids[worker] = pid
        self._use.add(worker, pid, thread)

    def result(self, worker: int, chunk: int, busy: int, decode: int, end: int) -> None:
        """A chunk is done; `busy` is negative when it is not known how long that took, and will come again then."""
        if busy < 0:
            known = self.chunks.get(chunk)
            if known is not None and (way := self.ways.get(known[1])) is not None:
                way.end = max(way.end, self.clock())
            return
        totals = self.totals
        cached = chunk in self._cached
        if cached:
            self._cached.remove(chunk)
            totals.ns[_READ] += busy - decode
            totals.counts[_READ] += 1
        if decode:
            totals.ns[_DECODE] += decode
            totals.counts[_DECODE] += 1
        if chunk not in self.chunks:
            return
        known = self.chunks.pop(chunk)
        if known[1] < 0:
            return
        begin = end - busy
        way = self.ways.get(known[1])
        number = "" if way is None else way.number
        if self.trace is not None:
            queued = 0 if way is None else max(0, begin - way.planned - known[3])
            args = {"batch": number, "items": known[2], "decode_us": decode / 1000, "queued_us": queued / 1000}
            self.trace.chunk(
                self._pids.get(worker, os.getpid()), worker, "read" if cached else "load", begin, end, args
            )
        if way is None:
            return
        since = max(way.planned + known[3], 0 if self._base is None else self._base.at)
        self._add(_QUEUE, max(0, begin - since), way.weight)
        way.begin = min(way.begin or begin, begin)
        way.end = max(way.end, end)
        way.busy += busy
        way.decode += decode
        way.cached = cached

    def gone(self, chunk: int) -> None:
        """Nothing will come of a chunk any more."""
        self.chunks.pop(chunk, None)
        self._cached.discard(chunk)

    def lost(self, worker: int) -> None:
        """A worker is lost with all that it was given."""
        for chunk in [chunk for chunk, known in self.chunks.items() if known[0] == worker]:
            self.gone(chunk)

    def placed(self, plan: BatchPlan, slot: int, begin: int, *, copying: bool) -> None:
        """Placing a batch has taken since `begin`, and it is in the outbox in a moment."""
        way = self.ways.get(plan.position)
        if way is None:
            if self._full:
                self._engine[_PLACEMENT] += self.clock() - begin
            return
        way.placing, way.placed = begin, self.clock()
        self._add(_PLACEMENT, way.placed - begin, way.weight)
        self._engine[_PLACEMENT] += way.placed - begin
        if copying:
            self._copies[slot] = way.placed, way.number, way.weight
        if self.trace is not None:
            self.trace.span("placement", "place", begin, way.placed, {"batch": way.number, "items": plan.valid})

    def dropped(self, plan: BatchPlan) -> None:
        """A batch is left out."""
        self.ways.pop(plan.position, None)

    def copied(self, slot: int) -> None:
        """The device has copied a slot, as far as anybody has looked."""
        known = self._copies.pop(slot, None)
        if known is not None:
            now = self.clock()
            self._add(_COPY, now - known[0], known[2])
            if self.trace is not None:
                self.trace.span("copy", "copy", known[0], now, {"batch": known[1], "slot": slot})

    def retired(self, slot: int, begin: int) -> None:
        """Putting a fence up has taken since `begin`."""
        now = self.clock()
        self._add(_FENCE, now - begin, 1)
        self._engine[_FENCE] += now - begin
        if self.trace is not None:
            self.trace.span("placement", "fence", begin, now, {"slot": slot})

    def look(self, slots: SlotTable, unread: int) -> None:
        """Counts the slots, which have been at what they are at since the last turn.

        Args:
            slots: the table of them.
            unread: batches in the outbox, of which those that are not copied have a slot each.
        """
        now = self.clock()
        since = now - self._looked
        # A short wait, of which few are measured, is seen from its beginning to its end.
        if self._every == 1 and since < (_LOOK_IN_WAIT_NS if self._full else _LOOK_NS):
            return
        if self._base is not None:
            filling, full, lent, copying, retired = map(slots.count, _STATES)
            free = slots.free_count
            copying += retired
            ready = min(unread, lent)
            area = self.totals.slots
            numbers = (free, filling, full, ready, lent - ready, copying)
            for part, number in enumerate(numbers):
                area[part] += number * since
            self.totals.seen += since
            if self.trace is not None:
                self.trace.level("slots", self._looked, dict(zip(_PARTS, numbers, strict=True)))
            if self._full and not (free or filling or full or ready):
                self._starving(min(since, now - self._first_wait), lent, copying)
        self._looked = now
        self.active = self._every == 1 or self._full or bool(self.ways)

    def tick(self) -> None:
        """Looks whether it is time for the next batch to be told of, whichever it is; from any thread."""
        if self._recent and self.clock() - self._recent[-1].at > _SNAPSHOT_NS:
            self.due = 0

    def _starving(self, ns: int, lent: int, copying: int) -> None:
        """The consumer has waited for a slot."""
        # One batch is often held by the loop itself, until its variable is assigned the next one.
        cause = Cause.COPY if copying else Cause.HELD if 2 * self._count_held() > lent else Cause.RUNNING
        self._starved[cause] += ns

    def _count_held(self) -> int:
        """How many slots Python objects refer to."""
        return sum(bool(lent.alive()) for lent in list(self.lent.values()))

    def _add(self, kind: int, ns: int, weight: int) -> None:
        self.totals.ns[kind] += ns * weight
        self.totals.counts[kind] += weight

    # The consumer's side.

    def wait(self, now: int) -> None:
        """The consumer begins to wait for a batch that is `due`."""
        if self._first_wait:
            return
        self._end_step(now)
        self._first_wait, self._waited_before = now, self.waits.ns
        last, then = self._last
        chosen = not (last + 1 + self.batches - then) % self._every
        if chosen:
            self._held = self._count_held()
            self.totals.held += self._held * self._every
        if chosen or not self._ordered:  # then any of them can be the next, and one that is measured may be
            self._starved = [0] * len(Cause)
            self._engine_before = [self._engine[kind] for kind in _ENGINE]
            self._full = True
            self._activate(now)

    def leave(self, position: int, items: int) -> None:
        """`next()` returns a batch that is `due`, and counted."""
        now = self.clock()
        self._end_step(now)
        if self._ordered:
            for late in [late for late in tuple(self.ways) if late < position]:
                self.ways.pop(late, None)
        begin, full = self._first_wait, self._full
        self._first_wait, self._full = 0, False
        if position in self.ways:
            way = self.ways.pop(position)
            waited = self.waits.ns - self._waited_before
            causes: list[int] = []
            if begin and full and self._base is not None:
                causes = self._blame(way, begin, waited)
                totals = self.totals
                for cause, ns in enumerate(causes):
                    totals.causes[cause] += ns * way.weight
            if self.trace is not None:
                self._step_since, self._step_of = now, (way.number, items)
                if begin:
                    args: dict[str, Any] = {"batch": way.number, "held": self._held}
                    args["for_us"] = {Cause(cause).name.lower(): ns / 1000 for cause, ns in enumerate(causes) if ns}
                    self.trace.span("consumer", "wait", begin, begin + waited, args)
        if self._base is None:
            self._looked = now
            self._base = self._snapshot(now)
            self._recent.append(self._base)
        elif now - self._recent[-1].at > _SNAPSHOT_NS or self.batches == _SOON:
            self._next_interval(now, self._recent[-1])
        self._last = position, self.batches
        if self._ordered:
            # Those that are on their way were chosen when others were.
            self.due = min((position - position % self._every + self._every, position + _LONGEST, *tuple(self.ways)))
            self.await_from = self.batches + self.due - position - 1
        else:
            self.due = self.await_from = 0

    def _end_step(self, now: int) -> None:
        if self._step_since and self.trace is not None:
            number, items = self._step_of
            self.trace.span("consumer", "step", self._step_since, now, {"batch": number, "items": items})
        self._step_since = 0

    def settle(self, at: int | None = None) -> Totals:
        """The sums, with those that follow from what is counted of every batch and chunk, until `at` or now."""
        waits = self.waits
        at = waits.since or (self.clock() if at is None else at)
        totals = self.totals
        totals.batches, totals.items = self.batches, self.items
        totals.ns[_WAIT], totals.counts[_WAIT] = waits.ns, waits.count
        # What the consumer does not wait is its own time.
        totals.ns[_STEP], totals.counts[_STEP] = at - waits.ns, self.batches
        totals.ns[_LOAD] = self.counters.busy_ns - totals.ns[_READ] - totals.ns[_DECODE]
        totals.counts[_LOAD] = self.counters.chunks - totals.counts[_READ]
        totals.use = list(self._use.look())
        return totals

    def _snapshot(self, at: int) -> Totals:
        return self.settle(at).snapshot(at)

    def _next_interval(self, now: int, last: Totals) -> None:
        period = (now - last.at) / max(1, self.batches - last.batches)
        if now - last.at > _SNAPSHOT_NS:
            self._recent.append(self._snapshot(now))
        if self.trace is not None:
            return
        if self._cost_ns is None and period < _SLOW_NS:
            self._cost_ns = _cost()
        self._every = 1 if self._cost_ns is None else interval(period, self._cost_ns)

    def _blame(self, way: Way, begin: int, waited: int) -> list[int]:
        """What a wait was for that began at `begin`, by `Cause`."""
        end = begin + waited
        at = begin
        causes = self._starved

        def until(time: int) -> int:
            nonlocal at
            time = min(max(time, at), end)
            passed, at = time - at, time
            return passed

        idle = max(0, until(way.planning) - sum(causes))
        causes[_PLAN] = until(min(way.sent, way.begin or way.sent))
        causes[_QUEUE] = until(way.begin)
        loading = until(way.end)
        causes[_DECODE] = loading * way.decode // way.busy if way.busy else 0
        causes[_READ if way.cached else _LOAD] = loading - causes[_DECODE]
        idle += until(way.placing)
        causes[_PLACEMENT] = until(way.placed)
        idle += until(end)
        for kind, before in zip(_ENGINE, self._engine_before, strict=True):
            done = self._engine[kind] - before - causes[kind]
            instead = min(idle, max(0, done))
            causes[kind] += instead
            idle -= instead
        causes[_HANDOVER] = idle
        return causes

    # What came of it.

    @property
    def note(self) -> str | None:
        """Why the trace is not complete, if there is one that is not."""
        return None if self.trace is None else self.trace.note

    def close(self) -> None:
        """Nothing more will come."""
        if self.trace is not None:
            self._end_step(self.clock())  # the last step has no other end
            self.trace.close()

    def stages(self, at: int | None = None) -> Stages:
        """What the time since the first batch went into, until `at` or now."""
        if self._base is None:
            return Stages(workers=self.employed.now)
        now = self.clock() if at is None else at
        whole = self.settle(now).since(self._base, now)
        # the oldest snapshot is replaced at the next one, so this is of 9 to 10 seconds, once there are as many
        since = self._recent[0] if len(self._recent) >= 3 else None
        recent = since and Stages.of(self.totals.since(since, now), self.employed.mean(since.at, now))
        return Stages.of(whole, self.employed.mean(self._base.at, now), recent)


@cache
def _cost() -> float:
    """Nanoseconds that measuring one batch in full costs in this process."""
    clock, slots = StageClock(1, cost_ns=0.0), SlotTable(3)
    plan = clock.timed(lambda position: BatchPlan(position, False, 0, 0, 0, 0, 0, 1, 1, [0], None, 0))

    def batch(position: int) -> None:
        clock.wait(clock.clock())
        clock.look(slots, 0)
        found = plan(position)
        clock.dispatched(0, position, found, 1, clock.clock())
        clock.look(slots, 0)
        clock.result(0, position, 1, 0, clock.clock())
        clock.placed(found, 0, clock.clock(), copying=False)
        clock.batches += 1
        clock.leave(position, 1)

    return cost(batch)
