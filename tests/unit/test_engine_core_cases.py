"""The engine's state machine, a case at a time; `tests/property/test_engine_core.py` tries all orders of messages."""

from __future__ import annotations

import json
from collections import deque

import pytest

from hydrax_gpu._engine.core import Core, CoreConfig
from hydrax_gpu._engine.faults import FaultRules
from hydrax_gpu._engine.messages import (
    Decode,
    Decoded,
    Dispatch,
    Drop,
    Effect,
    Fail,
    Finish,
    Place,
    Placed,
    PlacementFailed,
    Respawn,
    Start,
    Stop,
    Taken,
)
from hydrax_gpu._exec.protocol import Failure, Result, WorkerLost, WorkerReady
from hydrax_gpu._plan import BatchPlan, GroupPlan, Plan
from hydrax_gpu.errors import LoaderError, WorkerDied, WorkerStartError
from tests.small import engine_plan


class Driver:
    """A plain world for the single cases: carries on until nothing is left to do."""

    def __init__(
        self,
        *,
        depth: int = 2,
        workers: int = 2,
        end: int = 6,
        ordered: bool = True,
        on_device: bool = False,
        restarts: int = 0,
    ) -> None:
        plan = engine_plan(end)
        self.core = Core(
            CoreConfig(
                plan=plan.at,
                begin=0,
                end=plan.end_position,
                skip=frozenset(),
                depth=depth,
                workers=workers,
                ordered=ordered,
                faults=FaultRules(restarts=restarts),
                on_device=lambda plan: on_device,
            )
        )
        self.effects: deque[Effect] = deque()
        for worker in range(workers):
            self.effects.extend(self.core.step(WorkerReady(worker, 100 + worker, 1, False)))
        self.effects.extend(self.core.step(Start()))

    def dispatches(self) -> list[Dispatch]:
        return [effect for effect in self.effects if isinstance(effect, Dispatch)]


def result(task: Dispatch, *failures: Failure) -> Result:
    return Result(task.worker, task.chunk, 1000, None, failures)


def test_an_items_failure_is_raised_when_its_batch_is_due_and_not_before() -> None:
    driver = Driver(workers=1)
    first = [task for task in driver.dispatches() if task.load.plan.position == 0]
    later = [task for task in driver.dispatches() if task.load.plan.position == 1]
    failure = Failure(1, "ValueError: no such file", "Traceback ...", None)
    assert [type(e) for e in driver.core.step(result(later[0], failure)) if not isinstance(e, Dispatch)] == []
    effects = [effect for task in first for effect in driver.core.step(result(task))]
    kinds = [type(effect) for effect in effects if not isinstance(effect, Dispatch)]
    assert kinds == [Place, Fail]
    error = next(effect.error for effect in effects if isinstance(effect, Fail))
    assert isinstance(error, LoaderError)
    assert error.item_index == later[0].load.plan.indices[later[0].begin + 1]


def test_of_several_failures_the_first_row_is_named() -> None:
    driver = Driver(workers=2)
    tasks = [task for task in driver.dispatches() if task.load.plan.position == 0]
    assert len(tasks) == 2, "the first batch is shared among all workers"
    late, early = tasks[1], tasks[0]
    driver.core.step(result(late, Failure(0, "ValueError: late", "", None)))
    effects = driver.core.step(result(early, Failure(1, "ValueError: early", "", None)))
    error = next(effect.error for effect in effects if isinstance(effect, Fail))
    assert isinstance(error, LoaderError) and error.item_index == early.load.plan.indices[1]
    assert "early" in str(error)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (WorkerLost(1, 101, -9, None, "", None), WorkerDied),
        (WorkerLost(1, 101, None, "no module named x", "", ImportError("x")), WorkerStartError),
        (PlacementFailed(0, 1, ValueError("placement")), ValueError),
    ],
)
def test_what_cannot_be_mended_ends_the_run_once(message: WorkerLost | PlacementFailed, kind: type) -> None:
    driver = Driver()
    effects = driver.core.step(message)
    assert [type(effect) for effect in effects] == [Fail]
    assert isinstance(effects[0], Fail) and isinstance(effects[0].error, kind)
    assert driver.core.step(message) == []
    for task in driver.dispatches():
        assert driver.core.step(result(task)) == []


def test_a_dead_workers_items_are_named() -> None:
    driver = Driver(workers=2)
    held = [i for t in driver.dispatches() if t.worker == 1 for i in t.load.plan.indices[t.begin : t.end]]
    effects = driver.core.step(WorkerLost(1, 101, -11, None, "", None))
    error = effects[0].error if isinstance(effects[0], Fail) else None
    assert isinstance(error, WorkerDied)
    assert held and error.items == held and error.exitcode == -11 and "SIGSEGV" in str(error)


def test_a_file_that_the_device_refused_stays_refused_when_a_worker_dies_over_it() -> None:
    driver = Driver(depth=1, workers=1, end=1, on_device=True, restarts=1)
    (task,) = driver.dispatches()
    (decode,) = driver.core.step(result(task))
    assert isinstance(decode, Decode)
    (refused,) = driver.core.step(Decoded(task.load.slot, task.load.generation, {1: "not a JPEG"}, None))
    assert isinstance(refused, Dispatch) and (refused.begin, refused.end, refused.refused) == (1, 2, True)
    begun = task.end - task.begin + 1
    (respawn,) = driver.core.step(WorkerLost(0, 100, -9, None, "", None, begun))
    assert isinstance(respawn, Respawn)
    (again,) = driver.core.step(WorkerReady(0, 101, 1, False))
    assert isinstance(again, Dispatch) and (again.begin, again.end, again.refused) == (1, 2, True)
    (placed,) = driver.core.step(result(again)) or [None]
    assert isinstance(placed, Decode)


def test_stop_ends_everything_at_once() -> None:
    driver = Driver()
    assert driver.core.step(Stop()) == []
    for task in driver.dispatches():
        assert driver.core.step(result(task)) == []
    assert driver.core.step(Start()) == []


def test_copied_batches_that_nobody_takes_hold_the_loader_back() -> None:
    driver = Driver(depth=2, workers=1, end=50)
    placed = 0
    while driver.effects:
        effect = driver.effects.popleft()
        if isinstance(effect, Dispatch):
            driver.effects.extend(driver.core.step(result(effect)))
        elif isinstance(effect, Place):
            placed += 1
            driver.effects.extend(driver.core.step(Placed(effect.load.slot, effect.load.generation, False)))
    assert placed == 2, "as many copies as depth wait in the outbox"
    assert driver.core.waits_for_consumer
    assert any(isinstance(effect, Place) for effect in driver.core.step(Taken(1)))


def test_slow_items_are_sent_in_small_chunks_and_fast_ones_in_one() -> None:
    def chunks_of_a_later_batch(item_ns: int) -> int:
        plan = Plan(
            [
                GroupPlan(
                    length=6400, batch_size=64, seed=0, shuffle_first=False, shuffle_later="repeat", remainder="drop"
                )
            ]
        )
        core = Core(CoreConfig(plan=plan.at, begin=0, end=None, skip=(), depth=3, workers=2))
        effects = deque([*core.step(WorkerReady(0, 1, 1, False)), *core.step(WorkerReady(1, 2, 1, False))])
        effects.extend(core.step(Start()))
        count: dict[int, int] = {}
        while len(count) < 12:
            effect = effects.popleft()
            if isinstance(effect, Dispatch):
                position = effect.load.plan.position
                count[position] = count.get(position, 0) + 1
                ns = item_ns * (effect.end - effect.begin)
                effects.extend(core.step(Result(effect.worker, effect.chunk, ns, None, ())))
            elif isinstance(effect, Place):
                effects.extend(core.step(Placed(effect.load.slot, effect.load.generation, False)))
                effects.extend(core.step(Taken(1)))
        return count[10]

    assert chunks_of_a_later_batch(500) == 1
    assert chunks_of_a_later_batch(1_000_000) == 2  # of 32 ms each
    assert chunks_of_a_later_batch(10**9) == 64


@pytest.mark.parametrize(("workers", "depth", "chunks"), [(1, 3, 1), (2, 3, 1), (2, 2, 2), (5, 3, 3), (9, 2, 5)])
def test_rows_that_are_loaded_together_come_in_chunks_as_large_as_can_be(workers: int, depth: int, chunks: int) -> None:
    plan = engine_plan(40)
    core = Core(CoreConfig(plan=plan.at, begin=0, end=None, skip=(), depth=depth, workers=workers, together=True))
    effects: deque[Effect] = deque()
    for worker in range(workers):
        effects.extend(core.step(WorkerReady(worker, worker, 1, False)))
    effects.extend(core.step(Start()))
    sizes: dict[int, list[int]] = {}
    while len(sizes) < 20:
        effect = effects.popleft()
        if isinstance(effect, Dispatch):
            sizes.setdefault(effect.load.plan.position, []).append(effect.end - effect.begin)
            slow = 10**9 * (effect.end - effect.begin)  # however slow: it is the loader's business to be parallel
            effects.extend(core.step(Result(effect.worker, effect.chunk, slow, None, ())))
        elif isinstance(effect, Place):
            effects.extend(core.step(Placed(effect.load.slot, effect.load.generation, False)))
            effects.extend(core.step(Taken(1)))
    for position in range(10, 18):
        rows = plan.at(position).valid
        assert len(sizes[position]) == min(rows, chunks) and sum(sizes[position]) == rows


def lost(worker: int, begun: int) -> WorkerLost:
    return WorkerLost(worker, 100 + worker, -9, None, "", None, begun)


def drive_together(lethal: set[int], *, kills: int = 0, restarts: int = 2) -> tuple[list[Effect], list[int]]:
    """One worker that loads batches of five together, until the end; returns all effects and who was placed."""
    training = GroupPlan(length=25, batch_size=5, seed=1, shuffle_first=False, shuffle_later="repeat", remainder="drop")
    plan = Plan([training], end=("epoch", 1))
    rules = FaultRules(mode="drop", restarts=restarts, epoch_batches=10**6)
    core = Core(CoreConfig(plan=plan.at, begin=0, end=5, skip=(), depth=2, workers=1, together=True, faults=rules))
    seen: list[Effect] = []
    placed: list[int] = []
    effects = deque([*core.step(WorkerReady(0, 1, 1, False)), *core.step(Start())])
    tasks: deque[Dispatch] = deque()
    done = 0
    while effects or tasks:
        if not effects:
            task = tasks.popleft()
            items = task.load.plan.indices[task.begin : task.end]
            if lethal.intersection(items) or (kills and len(items) > 1):
                kills -= kills and not lethal.intersection(items)
                tasks.clear()
                effects.extend(core.step(lost(0, done + len(items))))
                done = 0
            else:
                done += len(items)
                effects.extend(core.step(Result(0, task.chunk, 1000, None, ())))
            continue
        effect = effects.popleft()
        seen.append(effect)
        if isinstance(effect, Dispatch):
            tasks.append(effect)
        elif isinstance(effect, Respawn):
            effects.extend(core.step(WorkerReady(0, 1, 1, False)))
        elif isinstance(effect, Place):
            placed += effect.load.plan.indices
            effects.extend(core.step(Placed(effect.load.slot, effect.load.generation, False)))
            effects.extend(core.step(Taken(1)))
    return seen, placed


def test_of_items_that_are_loaded_together_only_those_that_kill_alone_are_bad() -> None:
    """Three of them, in three batches, cost twelve deaths, and none counts for the two that are allowed."""
    seen, placed = drive_together({3, 11, 24})
    assert [type(effect) for effect in seen if isinstance(effect, Fail | Finish)] == [Finish]
    assert placed == [*range(5, 10), *range(15, 20)]
    bad = [(bad.item, bad.lethal) for effect in seen if isinstance(effect, Drop) for bad in effect.load.bad_items()]
    assert bad == [(3, True), (11, True), (24, True)]
    suspects = [effect.suspects for effect in seen if isinstance(effect, Respawn)]
    assert suspects[:4] == [[0, 1, 2, 3, 4], [3], [3], [3]] and len(suspects) == 12


@pytest.mark.parametrize(("kills", "end"), [(2, Finish), (4, Fail)])
def test_a_death_over_items_that_are_all_innocent_counts_once(kills: int, end: type) -> None:
    seen, placed = drive_together(set(), kills=kills)
    assert [type(effect) for effect in seen if isinstance(effect, Fail | Finish)] == [end]
    assert not any(isinstance(effect, Drop) for effect in seen)
    if end is Finish:
        assert placed == list(range(25))
    else:
        error = next(effect.error for effect in seen if isinstance(effect, Fail))
        assert isinstance(error, WorkerDied) and "3 deaths are more than" in str(error)


def test_plans_given_to_the_core_are_the_plans_placed() -> None:
    plan = engine_plan(4)
    seen: list[BatchPlan] = [plan.at(p) for p in range(plan.end_position or 0)]
    assert json.dumps([p.indices for p in seen])  # plain integers, not NumPy's
