"""The engine's state machine while the numbers of workers and slots change, under any order of messages.

The world of `test_engine_core.py`, whose workers come and go.
"""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from hydrax_gpu._engine.messages import Dismiss, Dispatch, Effect, Enlist, Place, Respawn, Tune
from hydrax_gpu._exec.protocol import WorkerLeft, WorkerLost
from hydrax_gpu._mem.slots import SlotState, SlotTable
from tests.property.test_engine_core import World


class TunedWorld(World):
    """As `World`. A number has one worker at a time, and those that are not wanted are given nothing more."""

    wanted = 99
    leaving: set[int]

    def take(self, effects: list[Effect]) -> None:
        if not hasattr(self, "leaving"):
            self.leaving = set()
        for effect in effects:
            match effect:
                case Dispatch(worker):
                    assert worker < self.wanted and worker in self.queues
                    super().take([effect])
                case Dismiss(worker):
                    assert not self.ended and worker >= self.wanted
                    assert not self.queues.pop(worker) and worker not in self.unready
                    self.leaving.add(worker)
                case Enlist(worker):
                    assert not self.ended and worker < self.wanted
                    assert worker not in self.queues and worker not in self.leaving
                    self.queues[worker] = deque()
                    self.rows_done_by[worker] = 0
                    self.unready.add(worker)
                case Respawn(lost, _, _, again):
                    assert again == (lost.worker < self.wanted)
                    super().take([effect])
                    if not again:
                        del self.queues[lost.worker]
                        self.unready.discard(lost.worker)
                case Place():
                    assert self.core.unread <= self.depth
                    super().take([effect])
                case _:
                    super().take([effect])

    @precondition(lambda self: not self.ended)
    @rule(data=st.data())
    def the_numbers_change(self, data: st.DataObject) -> None:
        workers = data.draw(st.integers(1, len(self.core.crew)))
        slots = data.draw(st.integers(1, self.depth))
        self.wanted = workers
        self.take(self.core.step(Tune(workers, slots)))
        assert self.core.slots.in_use == slots

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def a_worker_has_left(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.leaving)))
        self.leaving.remove(worker)
        self.take(self.core.step(WorkerLeft(worker)))

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def a_worker_dies_that_was_to_leave(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.leaving)))
        self.leaving.remove(worker)
        effects = self.core.step(WorkerLost(worker, 100 + worker, -9, None, "", None, self.rows_done_by[worker]))
        assert not any(isinstance(effect, Respawn) for effect in effects)
        self.take(effects)

    @precondition(lambda self: not self.ended and any(worker >= self.wanted for worker in self.unready))
    @rule(data=st.data())
    def a_worker_cannot_start_that_is_not_wanted(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.unready if worker >= self.wanted]))
        if not self.core.crew._workers[worker].began:
            self.unready.remove(worker)
            del self.queues[worker]
            self.take(self.core.step(WorkerLost(worker, 100 + worker, 1, "no memory", "", None)))

    @invariant()
    def no_more_batches_exist_than_depth(self) -> None:
        if hasattr(self, "core"):
            slots = self.core.slots
            free = [slot for slot in range(self.depth) if slots.state(slot) is SlotState.FREE]
            assert slots.free_count == sum(slot < slots.in_use for slot in free)
            assert len({*self.lent, *self.copying}) + len(self.to_place) <= self.depth - len(free)
            assert self.core.copying == len(self.copying)

    @invariant()
    def a_number_that_is_wanted_has_a_worker(self) -> None:
        if hasattr(self, "core") and not self.ended:
            for number in range(min(self.wanted, len(self.core.crew))):
                assert number in self.queues or number in self.leaving

    def teardown(self) -> None:
        if hasattr(self, "core"):
            while self.leaving:
                self.take(self.core.step(WorkerLeft(self.leaving.pop())))
        super().teardown()


@settings(max_examples=100, deadline=None)
@given(
    depth=st.integers(1, 5),
    steps=st.lists(
        st.tuples(st.sampled_from(["use", "take", "discard", "lend"]), st.integers(0, 4)), min_size=25, max_size=60
    ),
)
def test_slots_that_are_not_in_use_are_not_taken(depth: int, steps: list[tuple[str, int]]) -> None:
    table = SlotTable(depth, 1)
    filling: list[int] = []
    lent: list[tuple[int, int]] = []
    for what, number in steps:
        if what == "use":
            table.use(1 + number % depth)
        elif what == "take":
            taken = table.take()
            busy = {*filling, *(slot for slot, _ in lent)}
            assert (taken is None) == busy.issuperset(range(table.in_use))
            if taken is not None:
                assert taken[0] < table.in_use and taken[0] not in busy
                filling.append(taken[0])
        elif filling:
            slot = filling.pop(number % len(filling))
            table.filled(slot)
            if what == "discard":
                table.discard(slot)
            else:
                table.lend(slot)
                lent.append((slot, table.generation(slot)))
        elif lent:
            assert table.release(*lent.pop(number % len(lent)))
        free = [slot for slot in range(depth) if table.state(slot) is SlotState.FREE]
        assert table.free_count == sum(slot < table.in_use for slot in free)
        assert table.all_lent == (not filling and not table.free_count)


TestTunedWorld = TunedWorld.TestCase
TestTunedWorld.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
