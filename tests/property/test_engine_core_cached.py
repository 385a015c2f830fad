"""The engine's state machine with caches, under any order of messages.

The world of `test_engine_core.py`, in which items may also be in a cache, on their way into it, or in it and damaged.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from hydrax_gpu._engine.cached import Caching, Form
from hydrax_gpu._engine.messages import Dispatch, Effect, Settled, Unread
from hydrax_gpu._exec.protocol import Failure, Result, Unreadable
from hydrax_gpu._plan import BatchPlan
from tests.property.test_engine_core import WORLD, World

ABSENT, PENDING, PRESENT, DAMAGED = range(4)


class Shelf:
    """What is in the caches: for each group and item one of the four states. Groups in `only` come from there alone."""

    def __init__(
        self, world: CachedWorld, states: dict[tuple[bool, int, int], int], only: set[tuple[bool, int]]
    ) -> None:
        self.world = world
        self.states = states
        self.only = only

    def states_of(self, plan: BatchPlan) -> list[int]:
        items = plan.indices[: plan.valid]
        return [self.states.get((plan.validation, plan.group, item), ABSENT) for item in items]

    def form(self, plan: BatchPlan) -> Form:
        states = self.states_of(plan)
        if PENDING in states and ABSENT not in states:
            return Form.WAIT
        if ABSENT not in states:
            return Form.READ
        if self.loads(plan):
            return Form.LOAD
        self.world.left_out.add(plan.position)
        return Form.DROP

    def loads(self, plan: BatchPlan) -> bool:
        return (plan.validation, plan.group) not in self.only


class CachedWorld(World):
    """As `World`; a batch that is read has what it was planned to have, whatever the loader function thinks of it."""

    @initialize(
        otherwise=st.sampled_from([PRESENT, PRESENT, PENDING, ABSENT]),
        exceptions=st.dictionaries(
            st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 22)), st.integers(0, 3), max_size=12
        ),
        only=st.sets(st.tuples(st.booleans(), st.integers(0, 1)), max_size=2),
        **WORLD,
    )
    def begin(
        self,
        otherwise: int,
        exceptions: dict[tuple[bool, int, int], int],
        only: set[tuple[bool, int]],
        **world: Any,
    ) -> None:
        everything = {(v, g, i): otherwise for v in (False, True) for g in (0, 1) for i in range(23)}
        self.shelf = Shelf(self, everything | exceptions, only)
        self.was_read: dict[int, list[int]] = {}  # position → the items of the batch, if all were read from the cache
        self.sent_as: dict[int, bool] = {}  # chunk → whether it was to be read
        super().begin(**world)

    def caching(self) -> Caching:
        return self.shelf

    def outcome(self, position: int) -> list[int] | None:
        return self.was_read[position] if position in self.was_read else super().outcome(position)

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Dispatch(_, chunk, load):
                    self.sent_as[chunk] = load.cached
                    states = self.shelf.states_of(load.plan)
                    if load.cached:
                        assert PENDING not in states, "not before it is there"
                    else:
                        assert self.shelf.loads(load.plan), "there is no other way to have it"
                case Unread(load, rows):
                    assert not self.ended
                    self.found_unread(load.plan, rows)
                    continue
                case _:
                    pass
            super().take([effect])

    def found_unread(self, plan: BatchPlan, rows: list[int]) -> None:
        for row in rows:
            key = plan.validation, plan.group, plan.indices[row]
            if self.shelf.states[key] == DAMAGED:
                self.shelf.states[key] = ABSENT
        if not self.shelf.loads(plan):
            self.left_out.add(plan.position)

    def do(self, worker: int, ns: int) -> None:
        task = self.queues[worker][0]
        assert task.load.cached == self.sent_as[task.chunk], "a batch must not change its layout while it is at work"
        if not task.load.cached:
            super().do(worker, ns)
            return
        self.queues[worker].popleft()
        plan = task.load.plan
        self.rows_done_by[worker] += task.end - task.begin
        rows = self.rows_done.setdefault((task.load.slot, task.load.generation), {})
        unread: list[int] = []
        for row in range(task.begin, task.end):
            if self.shelf.states[plan.validation, plan.group, plan.indices[row]] == PRESENT:
                rows[row] = plan.indices[row]
            else:
                unread.append(row - task.begin)
        if not task.load.unread and not unread:
            self.was_read[plan.position] = plan.indices[: plan.valid]
        else:
            self.was_read.pop(plan.position, None)
        self.take(self.core.step(Result(worker, task.chunk, ns, None, (), None, tuple(unread))))

    @precondition(lambda self: not self.ended and PENDING in self.shelf.states.values())
    @rule(data=st.data(), works=st.booleans())
    def something_is_written(self, data: st.DataObject, works: bool) -> None:
        pending = sorted(key for key, state in self.shelf.states.items() if state == PENDING)
        for key in data.draw(st.lists(st.sampled_from(pending), min_size=1, unique=True)):
            self.shelf.states[key] = PRESENT if works else ABSENT
        self.take(self.core.step(Settled()))

    @precondition(lambda self: not self.ended and PRESENT in self.shelf.states.values())
    @rule(data=st.data())
    def something_is_damaged(self, data: st.DataObject) -> None:
        present = sorted(key for key, state in self.shelf.states.items() if state == PRESENT)
        self.shelf.states[data.draw(st.sampled_from(present))] = DAMAGED

    @precondition(lambda self: not self.ended and any(self.queues.values()))
    @rule(data=st.data())
    def a_chunk_cannot_be_sent(self, data: st.DataObject) -> None:
        if not any(task.load.cached for queue in self.queues.values() for task in queue):  # there, only numbers are
            super().a_chunk_cannot_be_sent(data)

    @precondition(lambda self: not self.ended and any(self.queues.values()))
    @rule(data=st.data())
    def what_a_chunk_returned_cannot_be_read(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker, queue in self.queues.items() if queue]))
        task = self.queues[worker][0]
        if not task.load.cached:
            return
        self.queues[worker].popleft()
        self.rows_done_by[worker] += task.end - task.begin
        self.was_read.pop(task.load.plan.position, None)
        self.take(self.core.step(Unreadable(worker, task.chunk, Failure(0, "cannot be read", "", None))))

    def teardown(self) -> None:
        if hasattr(self, "core"):
            for key, state in self.shelf.states.items():
                if state == PENDING:
                    self.shelf.states[key] = PRESENT
            self.take(self.core.step(Settled()))
        super().teardown()


TestCachedWorld = CachedWorld.TestCase
TestCachedWorld.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
