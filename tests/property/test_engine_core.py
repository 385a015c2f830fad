"""The engine's state machine under any order of messages.

The world around the core (workers, consumer, JAX) is played by a hypothesis state machine that keeps its own books and
checks the core's promises after every step.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hydrax_gpu._engine.cached import Caching, NoCaching
from hydrax_gpu._engine.core import Core, CoreConfig
from hydrax_gpu._engine.faults import FaultRules
from hydrax_gpu._engine.messages import (
    Copied,
    Decode,
    Decoded,
    Dispatch,
    Drop,
    Effect,
    Fail,
    Finish,
    Load,
    Place,
    Placed,
    Released,
    Respawn,
    Retire,
    Start,
    Stop,
    Taken,
    Unsent,
)
from hydrax_gpu._exec.protocol import Failure, Result, Unreadable, WorkerLost, WorkerReady
from hydrax_gpu._mem.slots import SlotState
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.errors import LoaderError, TooManyBadItems
from hydrax_gpu.policy import BadItem, BadItems, Mode
from tests.small import engine_plan

WORLD: dict[str, st.SearchStrategy[Any]] = {
    "depth": st.integers(1, 5),
    "workers": st.integers(1, 4),
    "ordered": st.booleans(),
    "begin": st.integers(0, 7),
    "end": st.integers(0, 14),
    "skip": st.sets(st.integers(0, 6), max_size=3),
    "mode": st.sampled_from(["drop", "replace", "raise"]),
    "bad": st.sets(st.integers(0, 22), max_size=4),
    "lethal": st.sets(st.integers(0, 22), max_size=2),
    "known": st.sets(st.integers(0, 22), max_size=2),
    "together": st.booleans(),
    "files": st.booleans(),
}
"""How a world may begin."""


class World(RuleBasedStateMachine):
    """Messages come in any order that the real world can produce.

    Some items are bad, always and for everybody: the loader function raises for some, and others kill their worker. Now
    and then a worker is killed that has nothing to do with it, but too seldom for an item to be blamed. With `together`
    a worker begins all items of a task at once, and when it dies, which of them it was is not known.
    """

    @initialize(**WORLD)
    def begin(
        self,
        depth: int,
        workers: int,
        ordered: bool,
        begin: int,
        end: int,
        skip: set[int],
        mode: Mode,
        bad: set[int],
        lethal: set[int],
        known: set[int],
        together: bool,
        files: bool,
    ) -> None:
        plan = self.plan = engine_plan(end)
        assert plan.end_position is not None
        self.depth, self.ordered, self.mode = depth, ordered, mode
        self.files = files
        self.to_decode: list[Load] = []
        self.decoded: set[tuple[int, int]] = set()
        self.refused: set[tuple[int, int, int]] = set()  # slot, generation, row that a worker has to decode
        self.bad, self.lethal, self.known, self.together = bad, lethal, known, together
        self.skip = frozenset(begin + offset for offset in skip)
        groups = [(validation, group) for validation in (False, True) for group in (0, 1)]
        self.core = Core(
            CoreConfig(
                plan=plan.at,
                begin=begin,
                end=plan.end_position,
                skip=self.skip,
                depth=depth,
                workers=workers,
                ordered=ordered,
                together=together,
                faults=FaultRules(
                    mode=mode,
                    restarts=2,  # for those killed by accident; deaths by lethal items do not count
                    epoch_batches=10**6,
                    skip=BadItems(BadItem(validation=v, group=g, item=i) for v, g in groups for i in known),
                    substitutes=plan.substitutes,
                ),
                on_device=self.has_files,
                caching=self.caching(),
            )
        )
        self.expected = [p for p in range(begin, plan.end_position) if p not in self.skip]
        self.unready = set(range(workers))
        self.queues: dict[int, deque[Dispatch]] = {worker: deque() for worker in range(workers)}
        self.rows_done_by = dict.fromkeys(range(workers), 0)
        self.kills = 0
        self.rows_done: dict[tuple[int, int], dict[int, int]] = {}  # slot, generation → row → item that is in it
        self.to_place: deque[Load] = deque()
        self.outbox = 0
        self.lent: list[tuple[int, int]] = []
        self.copying: list[tuple[int, int]] = []  # of the lent and of the retired
        self.on_device: set[tuple[int, int]] = set()
        self.unretired: set[int] = set()  # slots of the device that were released, and not fenced off since
        self.stale: list[tuple[int, int]] = []
        self.left: list[int] = []  # positions, in the order in which they were placed or dropped
        self.dropped: list[int] = []
        self.ended: list[Effect] = []
        self.left_out: set[int] = set()  # positions of batches that cannot be had, although nothing is bad about them
        self.take(self.core.step(Start()))

    def has_files(self, plan: BatchPlan) -> bool:
        return self.files and plan.position % 3 != 0

    def caching(self) -> Caching:
        """What is in caches; nothing here, see `test_engine_core_cached.py`."""
        return NoCaching()

    # What should come of a batch.

    def is_bad(self, item: int) -> bool:
        return item in self.bad or item in self.lethal

    def outcome(self, position: int) -> list[int] | None:
        """The items that a batch is to have in the end, or None if it is dropped or raises."""
        plan = self.plan.at(position)
        items = plan.indices[: plan.valid]
        for row, item in enumerate(items):
            if item in self.known:
                if self.mode == "drop":
                    return None
            elif not self.is_bad(item):
                continue
            elif self.mode != "replace":
                return None
            for substitute, _ in self.plan.substitutes(plan, row):
                if substitute in self.known:
                    continue
                if self.mode == "raise" and self.is_bad(substitute):
                    return None
                if not self.is_bad(substitute):
                    items[row] = substitute
                    break
        return items

    # Effects.

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.ended, f"{effect} after {self.ended}"
            match effect:
                case Dispatch(worker, _, load, begin, end):
                    assert worker not in self.unready
                    assert 0 <= begin < end <= load.plan.valid
                    assert self.core.slots.state(load.slot) is SlotState.FILLING
                    assert self.core.slots.generation(load.slot) == load.generation
                    assert len(self.queues[worker]) < 16
                    self.queues[worker].append(effect)
                case Decode(load):
                    assert self.has_files(load.plan) and (load.slot, load.generation) not in self.decoded
                    if (outcome := self.outcome(load.plan.position)) is not None:
                        rows = self.rows_done[load.slot, load.generation]
                        items = [rows[row] for row in range(load.plan.valid)]
                        assert items == load.plan.indices[: load.plan.valid] == outcome
                    assert not {key[2] for key in self.refused if key[:2] == (load.slot, load.generation)}
                    self.to_decode.append(load)
                case Place(load):
                    wanted = self.has_files(load.plan) and not load.cached
                    assert ((load.slot, load.generation) in self.decoded) == wanted
                    rows = self.rows_done[load.slot, load.generation]
                    items = [rows[row] for row in range(load.plan.valid)]
                    assert items == load.plan.indices[: load.plan.valid], "what was loaded is what it says it has"
                    assert items == self.outcome(load.plan.position)
                    original = self.plan.at(load.plan.position).indices
                    assert load.plan.replaced == tuple(r for r in range(len(items)) if items[r] != original[r])
                    assert load.slot not in self.unretired, "nothing is written to a slot without a fence"
                    self.to_place.append(load)
                case Retire(slot):
                    self.unretired.remove(slot)
                case Drop(load):
                    position = load.plan.position
                    assert position in self.left_out or (self.mode == "drop" and self.outcome(position) is None)
                    self.left.append(load.plan.position)
                    self.dropped.append(load.plan.position)
                case Respawn(lost, items, suspects):
                    assert items == self.held_by_the_lost
                    assert set(suspects) <= set(items) and (self.together or len(suspects) <= 1)
                    self.queues[lost.worker].clear()
                    self.rows_done_by[lost.worker] = 0
                    self.unready.add(lost.worker)
                case Fail() | Finish():
                    self.ended.append(effect)

    def do(self, worker: int, ns: int) -> None:
        """A worker does the first of its tasks, or dies over it."""
        task = self.queues[worker][0]
        items = task.load.plan.indices[task.begin : task.end]
        for offset, item in enumerate(items):
            if item in self.lethal:
                self.die(worker, len(items) if self.together else offset + 1)
                return
        self.queues[worker].popleft()
        if task.refused:
            self.refused.discard((task.load.slot, task.load.generation, task.begin))
        self.rows_done_by[worker] += len(items)
        rows = self.rows_done.setdefault((task.load.slot, task.load.generation), {})
        failures: list[Failure] = []
        for offset, item in enumerate(items):
            if item in self.bad:
                failures.append(Failure(offset, f"item {item}", "", None))
            else:
                rows[task.begin + offset] = item
        self.take(self.core.step(Result(worker, task.chunk, ns, None, tuple(failures))))

    def die(self, worker: int, begun: int) -> None:
        begun += self.rows_done_by[worker]
        tasks = self.queues[worker]
        self.held_by_the_lost = [item for task in tasks for item in task.load.plan.indices[task.begin : task.end]]
        self.take(self.core.step(WorkerLost(worker, 100 + worker, -9, None, "", None, begun)))

    # What may happen.

    @precondition(lambda self: self.unready)
    @rule(data=st.data())
    def a_worker_gets_ready(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.unready)))
        self.unready.remove(worker)
        self.take(self.core.step(WorkerReady(worker, 1, 1, False)))

    @precondition(lambda self: not self.ended and any(self.queues.values()))
    @rule(data=st.data(), ns=st.integers(0, 10**8))
    def a_chunk_is_done(self, data: st.DataObject, ns: int) -> None:
        self.do(data.draw(st.sampled_from([worker for worker, queue in self.queues.items() if queue])), ns)

    @precondition(lambda self: not self.ended and self.kills < 2)
    @rule(data=st.data())
    def a_worker_is_killed(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.queues)))
        rows = sum(task.end - task.begin for task in self.queues[worker])
        self.kills += 1
        # It may have done some of its tasks, and died before it could say so.
        begun = st.integers(0, rows)
        if self.together:
            lengths = [task.end - task.begin for task in self.queues[worker]]
            begun = st.sampled_from([sum(lengths[:count]) for count in range(len(lengths) + 1)])
        self.die(worker, data.draw(begun))

    @precondition(lambda self: not self.ended and any(self.queues.values()))
    @rule(data=st.data())
    def a_chunk_cannot_be_sent(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker, queue in self.queues.items() if queue]))
        task = self.queues[worker][-1]
        items = task.load.plan.indices[task.begin : task.end]
        unsendable = [offset for offset, item in enumerate(items) if item in self.bad]
        if unsendable:
            self.queues[worker].pop()
            failures = tuple(Failure(offset, "cannot be sent", "", None) for offset in unsendable)
            self.take(self.core.step(Unsent(worker, task.chunk, failures)))

    @precondition(lambda self: not self.ended and any(self.queues.values()))
    @rule(data=st.data())
    def what_a_chunk_returned_cannot_be_read(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker, queue in self.queues.items() if queue]))
        task = self.queues[worker][0]
        items = task.load.plan.indices[task.begin : task.end]
        if any(item in self.bad for item in items) and not any(item in self.lethal for item in items):
            self.queues[worker].popleft()
            self.rows_done_by[worker] += len(items)
            failure = Failure(0, "cannot be read", "", None)
            self.take(self.core.step(Unreadable(worker, task.chunk, failure)))

    @precondition(lambda self: self.to_decode and not self.ended)
    @rule(data=st.data())
    def the_device_has_decoded_a_slot(self, data: st.DataObject) -> None:
        load = data.draw(st.sampled_from(self.to_decode))
        refused = data.draw(st.sets(st.integers(0, load.plan.valid - 1), max_size=2))
        self.decode(load, refused)

    def decode(self, load: Load, refused: set[int]) -> None:
        self.to_decode.remove(load)
        key = load.slot, load.generation
        if not refused:
            self.decoded.add(key)
        for row in refused:
            if self.outcome(load.plan.position) is not None:
                self.refused.add((*key, row))
        self.take(self.core.step(Decoded(*key, dict.fromkeys(refused, "refused"))))

    @precondition(lambda self: self.to_place)
    @rule(how=st.sampled_from(["lent", "copied", "on the device"]))
    def a_batch_is_placed(self, how: str) -> None:
        load = self.to_place.popleft()
        self.left.append(load.plan.position)
        self.outbox += 1
        key = load.slot, load.generation
        if how == "copied":
            self.stale.append(key)
        else:
            self.lent.append(key)
        if how == "on the device":
            self.copying.append(key)
            self.on_device.add(key)
        self.take(self.core.step(Placed(*key, how != "copied", how == "on the device")))

    @precondition(lambda self: self.copying)
    @rule(data=st.data())
    def the_device_has_copied_a_slot(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.copying))
        self.copying.remove(key)
        self.take(self.core.step(Copied(*key)))

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def a_lent_slot_is_released(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.lent))
        self.release(key)

    def release(self, key: tuple[int, int]) -> None:
        self.lent.remove(key)
        self.stale.append(key)
        if key in self.on_device and not self.ended:
            self.unretired.add(key[0])
        effects = self.core.step(Released(*key))
        if key in self.on_device and not self.ended:
            assert effects[0] == Retire(key[0]), "before anything that the same message leads to"
        self.take(effects)
        assert key[0] not in self.unretired

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def a_message_of_an_old_generation_comes_late(self, data: st.DataObject) -> None:
        slot, generation = data.draw(st.sampled_from(self.stale))
        before = self.core.slots.describe()
        effects = self.core.step(Released(slot, generation))
        if (slot, generation) not in self.copying:
            effects += self.core.step(Copied(slot, generation))
        assert not effects and self.core.slots.describe() == before

    @precondition(lambda self: self.outbox)
    @rule(data=st.data())
    def the_consumer_takes_batches(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.outbox))
        self.outbox -= count
        self.take(self.core.step(Taken(count)))

    @rule(chunk=st.integers(10_000, 20_000), data=st.data())
    def a_chunk_that_nobody_asked_for_is_done(self, chunk: int, data: st.DataObject) -> None:
        before = self.core.slots.describe()
        if not self.unready:  # or the first worker's readiness would dispatch
            worker = data.draw(st.sampled_from(sorted(self.queues)))
            assert not self.core.step(Result(worker, chunk, 5, None, ()))
            assert self.core.slots.describe() == before

    @invariant()
    def no_more_batches_exist_than_depth(self) -> None:
        if hasattr(self, "core"):
            held = sum(self.core.slots.state(s) is not SlotState.FREE for s in range(self.depth))
            assert held + self.core.slots.free_count == self.depth
            assert len({*self.lent, *self.copying}) + len(self.to_place) <= held
            assert self.core.copying == len(self.copying)

    @invariant()
    def batches_leave_in_order_and_once(self) -> None:
        if hasattr(self, "core"):
            leaving = self.left + [load.plan.position for load in self.to_place]
            assert len(set(leaving)) == len(leaving)
            assert set(leaving) <= set(self.expected)
            if self.ordered and self.mode != "drop" and not self.left_out:
                assert leaving == self.expected[: len(leaving)]
            if self.ordered:  # what is dropped leaves at once, what is placed a little later
                assert self.dropped == sorted(self.dropped)
                placed = [position for position in leaving if position not in self.dropped]
                assert placed == sorted(placed)

    @invariant()
    def a_slot_that_is_lent_is_not_filled(self) -> None:
        if hasattr(self, "core"):
            for key in {*self.lent, *self.copying}:
                expected = SlotState.LENT
                if key in self.copying:
                    expected = SlotState.COPYING if key in self.lent else SlotState.RETIRED
                assert self.core.slots.state(key[0]) is expected
                assert self.core.slots.generation(key[0]) == key[1]

    def teardown(self) -> None:
        """Whatever happened before: when the world does its part, everything arrives, and then the end."""
        if not hasattr(self, "core"):
            return
        for _ in range(10_000):
            if self.unready:
                worker = self.unready.pop()
                self.take(self.core.step(WorkerReady(worker, 1, 1, False)))
            elif not self.ended and any(self.queues.values()):
                self.do(max(self.queues, key=lambda worker: len(self.queues[worker])), 1000)
            elif not self.ended and self.to_decode:
                self.decode(self.to_decode[0], set())
            elif self.to_place:
                load = self.to_place.popleft()
                self.left.append(load.plan.position)
                self.outbox += 1
                self.lent.append((load.slot, load.generation))
                self.take(self.core.step(Placed(load.slot, load.generation, True)))
            elif self.outbox:
                count, self.outbox = self.outbox, 0
                self.take(self.core.step(Taken(count)))
            elif self.lent:
                self.release(self.lent[-1])
            elif self.copying:
                self.take(self.core.step(Copied(*self.copying.pop())))
            else:
                break
        end = self.ended[0]
        failing = [p for p in self.expected if p not in self.left_out and self.outcome(p) is None]
        missing = sorted({*failing, *self.left_out})
        if self.mode == "raise" and failing:
            assert isinstance(end, Fail) and isinstance(end.error, LoaderError)
            assert self.is_bad(end.error.item_index)
            if self.ordered:
                assert self.left == self.expected[: self.expected.index(failing[0])]
        else:
            assert sorted(self.left) == self.expected
            assert sorted(self.dropped) == missing
            if missing and len(missing) == len(self.expected):
                assert isinstance(end, Fail) and isinstance(end.error, TooManyBadItems)
            else:
                assert isinstance(end, Finish)
        assert len(self.ended) == 1
        assert not self.core.step(Stop())


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
