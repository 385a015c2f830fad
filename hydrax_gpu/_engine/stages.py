"""Where the time goes: takes the time of what the runner does, and says what each wait of the consumer was for.

Nothing is decided here, and nothing here is needed: the core knows no clock, and what is measured goes into the report
and the trace alone.

A wait is put down to what its own batch was at meanwhile, in the order of its way: no slot, planning, a worker's queue,
loading, placing. What is left is put down to what the engine did instead, and to nobody in the end (`HANDOVER`). So a
stage that is slow, but hidden behind another, is not blamed.

Batches that are quicker than half a millisecond are not all looked at, but every seventh, which counts seven times.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hydrax_gpu._mem.slots import SlotState, SlotTable
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._stages import Cause, Kind, Part, Stages, Totals

__all__ = ["StageClock", "TraceSink"]

_LOOK_NS = 200_000
"""The slots are counted at most this often; what they were in between is what they are then."""

_SNAPSHOT_NS = 1_000_000_000
_SNAPSHOTS = 10

_QUICK_NS = 500_000
_SOON = 32
"""After so many batches it is first asked whether they are that quick."""
_EVERY = 7
"""A prime, so that what comes at every other or fourth batch is seen as often as it comes."""

_ENGINE = (Kind.PLAN, Kind.PLACEMENT, Kind.FENCE)


class TraceSink(Protocol):
    """What is written down of single events; see `hydrax_gpu.trace`. All times are of `time.perf_counter_ns`."""

    def span(self, track: str, name: str, begin: int, end: int, args: Mapping[str, Any]) -> None:
        """Something that took a while, on one of the tracks `engine`, `placement`, `copy` and `consumer`."""
        ...

    def chunk(self, pid: int, worker: int, name: str, begin: int, end: int, args: Mapping[str, Any]) -> None:
        """What a worker did."""
        ...

    def level(self, name: str, at: int, values: Mapping[str, float]) -> None:
        """Numbers that hold from now on."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...

    @property
    def note(self) -> str | None:
        """Why not all of it is there."""
        ...


class Lent(Protocol):
    """A batch that was handed out."""

    def alive(self) -> Sequence[object]:
        """What there still is of it."""
        ...


class _Way:
    """The times of one batch."""

    __slots__ = (
        "begin",
        "busy",
        "cached",
        "decode",
        "end",
        "number",
        "placed",
        "placing",
        "planned",
        "planning",
        "sent",
    )

    def __init__(self, planning: int, planned: int, number: str) -> None:
        self.planning = planning
        self.planned = planned
        self.sent = planned
        self.begin = 0  # 0 for unknown, as long as no worker has told
        self.end = 0
        self.placing = 0
        self.placed = 0
        self.busy = 0
        self.decode = 0
        self.cached = False
        self.number = number


class StageClock:
    """Keeps the times of a loader.

    Args:
        workers: number of workers.
        clock: nanoseconds, of which zero does not matter.

    `enter`, `wait`, `waited` and `leave` are called by the consumer, the others by whoever drives the runner, with its
    lock.
    """

    def __init__(self, workers: int, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock = clock
        self.totals = Totals()
        self.lent: Mapping[int, Lent] = {}  # the batches that were handed out, by the slots that they share
        self._workers = workers
        self.trace: TraceSink | None = None  # where single events go as well
        self._every = 1
        self._ways: dict[int, _Way] = {}  # by position
        self._unsent: list[_Way] = []
        self._chunks: dict[int, tuple[int, int, int, int]] = {}  # → worker, position, items, when it was dispatched
        self._cached: set[int] = set()  # chunks that are read from a cache
        self._copies: dict[int, tuple[int, str]] = {}  # by slot
        self._pids: dict[int, int] = {}
        self._looked = 0
        self._left = 0
        self._left_with: tuple[str, int] = "", 0
        self._held = 0
        self._waits = 0
        self._wait_from = 0  # when the wait that is under way began
        self._first_wait = 0  # when the first of those since the last batch did
        self._starved: dict[Cause, int] = {}  # in these waits
        self._engine = [0] * len(_ENGINE)
        self._base: Totals | None = None  # at the first batch: what was before is start-up
        self._recent: deque[Totals] = deque(maxlen=_SNAPSHOTS)

    # The engine's side.

    def timed(self, plan: Callable[[int], BatchPlan]) -> Callable[[int], BatchPlan]:
        """A plan function whose calls are measured; a batch has its slot when it is planned."""

        def planned(position: int) -> BatchPlan:
            if position % self._every:
                return plan(position)
            begin = self.clock()
            result = plan(position)
            end = self.clock()
            self._add(Kind.PLAN, end - begin)
            kind = "validation" if result.validation else "batch"
            way = self._ways[position] = _Way(begin, end, f"{kind} {position}")
            if self.trace is not None:
                self.trace.span("engine", "plan", begin, end, {"batch": way.number, "items": result.valid})
            return result

        return planned

    def dispatched(
        self, worker: int, chunk: int, plan: BatchPlan, items: int, begin: int, *, cached: bool = False
    ) -> None:
        """A chunk was given to a worker; looking up its descriptors, and the like, has taken since `begin`.

        `cached` tells whether the worker is to read it from a cache.
        """
        if cached:
            self._cached.add(chunk)
        way = self._ways.get(plan.position)
        if way is None:
            return
        now = self.clock()
        self.totals.ns[Kind.PLAN] += (now - begin) * self._every
        self._chunks[chunk] = worker, plan.position, items, now - begin
        if self.trace is not None:
            self.trace.span("engine", "send", begin, now, {"batch": way.number, "items": items, "worker": worker})
        if not self._unsent or self._unsent[-1] is not way:
            self._unsent.append(way)

    def sent(self) -> None:
        """All that was dispatched is on its way to the workers."""
        if self._unsent:
            now = self.clock()
            for way in self._unsent:
                way.sent = now
            self._unsent.clear()

    def ready(self, worker: int, pid: int) -> None:
        """A worker has started."""
        self._pids[worker] = pid

    def result(self, worker: int, chunk: int, busy: int, decode: int, end: int) -> None:
        """A chunk is done; `busy` is negative when it is not known how long that took, and will come again then."""
        if busy < 0:
            known = self._chunks.get(chunk)
            if known is not None and (way := self._ways.get(known[1])) is not None:
                way.end = max(way.end, self.clock())
            return
        totals = self.totals
        kind = Kind.LOAD
        if chunk in self._cached:
            self._cached.remove(chunk)
            kind = Kind.READ
        totals.ns[kind] += busy - decode
        totals.counts[kind] += 1
        if decode:
            totals.ns[Kind.DECODE] += decode
            totals.counts[Kind.DECODE] += 1
        known = self._chunks.pop(chunk, None)
        if known is None:
            return
        begin = end - busy
        way = self._ways.get(known[1])
        number = "" if way is None else way.number
        if self.trace is not None:
            queued = 0 if way is None else max(0, begin - way.planned - known[3])
            args = {"batch": number, "items": known[2], "decode_us": decode / 1000, "queued_us": queued / 1000}
            self.trace.chunk(self._pids.get(worker, os.getpid()), worker, kind.name.lower(), begin, end, args)
        if way is None:
            return
        since = max(way.planned + known[3], 0 if self._base is None else self._base.at)
        self._add(Kind.QUEUE, max(0, begin - since))
        way.begin = min(way.begin or begin, begin)
        way.end = max(way.end, end)
        way.busy += busy
        way.decode += decode
        way.cached = kind is Kind.READ

    def gone(self, chunk: int) -> None:
        """Nothing will come of a chunk any more."""
        self._chunks.pop(chunk, None)
        self._cached.discard(chunk)

    def lost(self, worker: int) -> None:
        """A worker is lost with all that it was given."""
        for chunk in [chunk for chunk, known in self._chunks.items() if known[0] == worker]:
            del self._chunks[chunk]

    def placed(self, plan: BatchPlan, slot: int, begin: int, *, copying: bool) -> None:
        """Placing a batch has taken since `begin`, and it is in the outbox in a moment."""
        way = self._ways.get(plan.position)
        if way is None:
            return
        way.placing, way.placed = begin, self.clock()
        self._add(Kind.PLACEMENT, way.placed - begin)
        if copying:
            self._copies[slot] = way.placed, way.number
        if self.trace is not None:
            self.trace.span("placement", "place", begin, way.placed, {"batch": way.number, "items": plan.valid})

    def dropped(self, plan: BatchPlan) -> None:
        """A batch is left out."""
        self._ways.pop(plan.position, None)

    def copied(self, slot: int) -> None:
        """The device has copied a slot, as far as anybody has looked."""
        known = self._copies.pop(slot, None)
        if known is not None:
            now = self.clock()
            self._add(Kind.COPY, now - known[0])
            if self.trace is not None:
                self.trace.span("copy", "copy", known[0], now, {"batch": known[1], "slot": slot})

    def retired(self, slot: int, begin: int) -> None:
        """Putting a fence up has taken since `begin`."""
        now = self.clock()
        self.totals.ns[Kind.FENCE] += now - begin
        self.totals.counts[Kind.FENCE] += 1
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
        if since < _LOOK_NS:
            return
        if self._looked:
            count = slots.count
            free, filling, full = count(SlotState.FREE), count(SlotState.FILLING), count(SlotState.FULL)
            lent, copying = count(SlotState.LENT), count(SlotState.COPYING) + count(SlotState.RETIRED)
            ready = min(unread, lent)
            area = self.totals.slots
            for part, number in enumerate((free, filling, full, ready, lent - ready, copying)):
                area[part] += number * since
            if self.trace is not None:
                names = [part.name.lower() for part in Part]
                numbers = (free, filling, full, ready, lent - ready, copying)
                self.trace.level("slots", self._looked, dict(zip(names, numbers, strict=True)))
            if self._wait_from and not (free or filling or full or ready):
                self._starving(min(since, now - self._wait_from), lent, copying)
        self._looked = now

    def _starving(self, ns: int, lent: int, copying: int) -> None:
        """The consumer has waited for a slot."""
        # One batch is often held by the loop itself, until its variable is assigned the next one.
        cause = Cause.COPY if copying else Cause.HELD if 2 * self._count_held() > lent else Cause.RUNNING
        self._starved[cause] = self._starved.get(cause, 0) + ns

    def _count_held(self) -> int:
        """How many slots Python objects refer to."""
        return sum(bool(lent.alive()) for lent in list(self.lent.values()))

    def _add(self, kind: Kind, ns: int) -> None:
        every = self._every
        self.totals.ns[kind] += ns * every
        self.totals.counts[kind] += every

    # The consumer's side.

    def enter(self) -> None:
        """`next()` begins."""
        now = self.clock()
        if self._left:
            self.totals.ns[Kind.STEP] += now - self._left
            self.totals.counts[Kind.STEP] += 1
            if self.trace is not None:
                number, items = self._left_with
                self.trace.span("consumer", "step", self._left, now, {"batch": number, "items": items})
            self._left = 0

    def wait(self) -> None:
        """The consumer begins to wait."""
        now = self._wait_from = self.clock()
        self._held = self._count_held()
        self.totals.held += self._held
        if not self._first_wait:
            self._first_wait = now
            self._starved = {}
            ns = self.totals.ns
            self._engine = [ns[kind] for kind in _ENGINE]

    def waited(self) -> None:
        """The consumer has waited."""
        now = self.clock()
        self.totals.ns[Kind.WAIT] += now - self._wait_from
        self.totals.counts[Kind.WAIT] += 1
        self._waits += now - self._wait_from
        self._wait_from = 0

    def leave(self, position: int, items: int) -> None:
        """`next()` returns a batch."""
        now = self._left = self.clock()
        totals = self.totals
        totals.batches += 1
        totals.items += items
        way = self._ways.pop(position, None)
        self._left_with = "" if way is None else way.number, items
        if self._first_wait:
            begin, waited = self._first_wait, self._waits
            self._first_wait = self._waits = 0
            args: dict[str, Any] = {"batch": self._left_with[0], "held": self._held}
            if way is not None and self._base is not None:
                causes = self._blame(way, begin, waited)
                for cause, ns in causes.items():
                    totals.causes[cause] += ns * self._every
                args["for_us"] = {cause.name.lower(): ns / 1000 for cause, ns in causes.items() if ns}
            if self.trace is not None:
                self.trace.span("consumer", "wait", begin, begin + waited, args)
        if self._base is None:
            self._looked = now
            self._base = totals.snapshot(now)
            self._recent.append(self._base)
            return
        last = self._recent[-1]
        late = now - last.at > _SNAPSHOT_NS
        if late:
            self._recent.append(totals.snapshot(now))
        if (late or totals.batches == _SOON) and self.trace is None:
            period = (now - last.at) / max(1, totals.batches - last.batches)
            self._every = _EVERY if period < _QUICK_NS else 1

    def _blame(self, way: _Way, begin: int, waited: int) -> dict[Cause, int]:
        """What a wait was for that began at `begin`."""
        end = begin + waited
        at = begin
        causes = dict(self._starved)

        def until(time: int) -> int:
            nonlocal at
            time = min(max(time, at), end)
            passed, at = time - at, time
            return passed

        idle = max(0, until(way.planning) - sum(causes.values()))
        causes[Cause.PLAN] = until(min(way.sent, way.begin or way.sent))
        causes[Cause.QUEUE] = until(way.begin)
        loading = until(way.end)
        decode = loading * way.decode // way.busy if way.busy else 0
        causes[Cause.READ if way.cached else Cause.LOAD], causes[Cause.DECODE] = loading - decode, decode
        idle += until(way.placing)
        causes[Cause.PLACEMENT] = until(way.placed)
        idle += until(end)
        for kind, before in zip(_ENGINE, self._engine, strict=True):
            cause = Cause(kind)
            done = self.totals.ns[kind] - before - causes.get(cause, 0)
            instead = min(idle, max(0, done))
            causes[cause] = causes.get(cause, 0) + instead
            idle -= instead
        causes[Cause.HANDOVER] = idle
        return causes

    # What came of it.

    @property
    def note(self) -> str | None:
        """Why the trace is not complete, if there is one that is not."""
        return None if self.trace is None else self.trace.note

    def close(self) -> None:
        """Nothing more will come."""
        if self.trace is not None:
            self.enter()  # the last step has no other end
            self.trace.close()

    def stages(self, at: int | None = None) -> Stages:
        """What the time since the first batch went into, until `at` or now."""
        if self._base is None:
            return Stages(workers=self._workers)
        now = self.clock() if at is None else at
        whole = self.totals.since(self._base, now)
        # the oldest snapshot is replaced at the next one, so this is of 9 to 10 seconds, once there are as many
        recent = None if len(self._recent) < 3 else Stages.of(self.totals.since(self._recent[0], now), self._workers)
        return Stages.of(whole, self._workers, recent)
