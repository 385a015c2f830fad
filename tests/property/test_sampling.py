"""Which batches are measured in full: few enough, as often as each other, and none of them is forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import isqrt
from statistics import median
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hydrax_gpu._engine import sampling
from hydrax_gpu._engine.sampling import INTERVALS, cost, interval
from hydrax_gpu._engine.stages import StageClock
from hydrax_gpu._mem.slots import SlotTable
from hydrax_gpu._stages import Kind
from tests.small import engine_plan

PLAN = engine_plan(10).at(0)

times = st.floats(min_value=0, max_value=1e12)


def share(every: int, period: float, each: float) -> float:
    """Of a batch's time that goes into measuring one in so many in full."""
    return sampling._COLD * each / (every * max(period, 1.0))


@given(period=times, each=times)
@example(period=0.0, each=0.0)
@example(period=0.0, each=1e12)
def test_the_shortest_interval_that_is_cheap_enough(period: float, each: float) -> None:
    every = interval(period, each)
    place = INTERVALS.index(every)
    if place < len(INTERVALS) - 1:  # a batch that is quicker still is measured too often rather than never
        assert share(every, period, each) <= sampling._SHARE * (1 + 1e-9)
    if place:
        assert share(INTERVALS[place - 1], period, each) > sampling._SHARE * (1 - 1e-9)


@given(period=times, longer=times, each=times, dearer=times)
def test_slow_batches_are_measured_as_often_at_least(period: float, longer: float, each: float, dearer: float) -> None:
    assert interval(period + longer, each) <= interval(period, each) <= interval(period, each + dearer)


def test_intervals_are_primes() -> None:
    assert INTERVALS[0] == 1 and list(INTERVALS) == sorted(set(INTERVALS))
    assert all(n % d for n in INTERVALS[1:] for d in range(2, isqrt(n) + 1))


@given(durations=st.lists(st.integers(0, 10**9), min_size=sampling._REHEARSALS, max_size=sampling._REHEARSALS))
def test_a_cost_is_a_median(durations: list[int]) -> None:
    now, calls = 0, list[int]()

    def batch(number: int) -> None:
        nonlocal now
        calls.append(number)
        now += durations[number]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling.time, "perf_counter_ns", lambda: now)
        assert cost(batch) == median(durations)
    assert calls == list(range(sampling._REHEARSALS))


class Clock(StageClock):
    """Notes what it is told of; its interval is what a test wants next."""

    def __init__(self, wanted: Iterator[int], *, ordered: bool) -> None:
        self.now = 1
        super().__init__(1, ordered=ordered, clock=self.now_ns)
        self.wanted = wanted
        self.told: list[int] = []

    def now_ns(self) -> int:
        self.now += 1
        return self.now

    def leave(self, position: int, items: int) -> None:
        self.told.append(position)
        self._every = next(self.wanted)
        super().leave(position, items)

    def _next_interval(self, now: int, last: Any) -> None:
        pass


@given(
    start=st.integers(0, 10),
    ahead=st.integers(1, 4),
    ordered=st.booleans(),
    looks=st.sets(st.integers(0, 60)),
    dropped=st.sets(st.integers(0, 60)),
    intervals=st.lists(st.sampled_from(INTERVALS[:5]), min_size=1, max_size=60),
    data=st.data(),
)
def test_every_batch_that_is_measured_is_seen_to_its_end(
    start: int, ahead: int, ordered: bool, looks: set[int], dropped: set[int], intervals: list[int], data: Any
) -> None:
    """Whatever is left out, in whatever order it comes, and however the interval changes meanwhile."""

    def wanted() -> Iterator[int]:
        yield from intervals
        while True:
            yield intervals[-1]

    clock = Clock(wanted(), ordered=ordered)
    plan = clock.timed(lambda position: PLAN._replace(position=position))
    pending: deque[Any] = deque()
    measured: dict[int, int] = {}  # → weight
    position, handed = start, 0
    while position < 60 or pending:
        while len(pending) < ahead and position < 60:
            planned = plan(position)
            if position in clock.ways:
                measured[position] = clock.ways[position].weight
            pending.append(planned)
            position += 1
        if not ordered:
            pending.rotate(data.draw(st.integers(0, len(pending) - 1)) if len(pending) > 1 else 0)
        batch = pending.popleft()
        if batch.position in looks:
            clock.due = 0  # it is time for a snapshot
        # as `Stream` and `Runner` do
        if clock.batches >= clock.await_from:
            clock.wait(clock.now_ns())
        if clock.active:
            clock.look(SlotTable(3), 0)
        assert clock.active or not (clock.ways or clock._full)
        if clock.active:
            clock.placed(batch, 0, clock.now_ns(), copying=False)
        if batch.position in dropped:
            clock.dropped(batch)
            continue
        handed += 1
        clock.batches = handed
        if batch.position >= clock.due:
            clock.leave(batch.position, 1)
        if batch.position in measured:
            assert clock.told[-1] == batch.position
        assert batch.position not in clock.ways and not clock._full
        assert not ordered or all(way > batch.position for way in clock.ways)
    assert not clock.ways
    assert clock.totals.counts[Kind.PLAN] == clock.totals.counts[Kind.PLACEMENT] == sum(measured.values())
