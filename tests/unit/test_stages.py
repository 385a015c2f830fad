"""A delay in one stage of a batch's way: the report's verdict names that stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import ArraySpec, Dataloader
from hydrax_gpu._engine.stages import StageClock
from hydrax_gpu._mem.slots import SlotTable
from hydrax_gpu._stages import Cause, Kind, Stages, Totals
from hydrax_gpu._verdict import verdict
from hydrax_gpu.report import Report
from hydrax_gpu.testing import FakeDevice
from tests import loaders
from tests.slow import SlowData, SlowDecode, SlowLoad, take
from tests.small import ARRAYS, engine_plan, group

PLAN = engine_plan(10).at(0)
US = 1_000
MS = 1_000_000


class Kept:
    """A batch that somebody keeps, or not."""

    def __init__(self, objects: Sequence[object]) -> None:
        self.objects = objects

    def alive(self) -> Sequence[object]:
        return self.objects


class Life:
    """Batches that go their way one after the other, each stage taking the time that `delays` has for it (50 µs)."""

    def __init__(self, **delays: int) -> None:
        self.now = 5 * MS
        self.delays = delays
        self.clock = StageClock(2, clock=lambda: self.now, cost_ns=5 * US)
        self.plan = self.clock.timed(self._plan)
        self.slots = SlotTable(3)
        self.clock.lent = {0: Kept("b"), 1: Kept("b" if "held" in delays else ""), 2: Kept("")}
        self.cached = "read" in delays
        self.position = 0

    def _plan(self, position: int) -> Any:
        self.spend("plan")
        return PLAN._replace(position=position)

    def spend(self, stage: str) -> None:
        self.now += self.delays.get(stage, 50 * US)

    def wait_for_slot(self) -> None:
        """All slots are somebody's: `held` by Python objects, read by `running` computations, or being copied."""
        blocked = next((name for name in ("held", "running", "copy") if name in self.delays), None)
        if blocked is None:
            return
        slots = SlotTable(3)
        for slot in range(3):
            _, generation = slots.take() or (0, 0)
            slots.filled(slot)
            slots.lend(slot)
            if blocked == "copy":
                slots.copying(slot, generation)
        self.clock.look(slots, 0)
        self.spend(blocked)
        self.clock.look(slots, 0)

    def batch(self) -> None:
        """One batch, for which the consumer waits from the beginning."""
        clock, position = self.clock, self.position
        self.position += 1
        self.wait()
        self.wait_for_slot()
        if "fence" in self.delays:
            begin = self.now
            self.spend("fence")
            clock.retired(0, begin)
        if "copy" in self.delays:
            clock.copied(0)
        plan = self.plan(position)
        begin = self.now
        clock.dispatched(0, position, plan, plan.valid, begin, cached=self.cached)
        self.spend("queue")
        begin = self.now
        self.spend("read" if self.cached else "load")
        loaded = self.now
        if "decode" in self.delays:
            self.spend("decode")
        self.result(position, self.now - begin, self.now - loaded)
        self.spend("handover")
        begin = self.now
        self.spend("placement")
        clock.placed(plan, 0, begin, copying="copy" in self.delays)
        self.leave(position)
        self.spend("step")

    def leave(self, position: int) -> None:
        """What `next()` does at the end of a wait; see `Stream`."""
        clock = self.clock
        clock.waits.count += 1
        clock.waits.ns += self.now - self.began
        clock.batches += 1
        clock.items += PLAN.valid
        if position >= clock.due:
            clock.leave(position, PLAN.valid)

    def wait(self) -> None:
        """What it does at the beginning of one."""
        self.began = self.now
        if self.clock.batches >= self.clock.await_from:
            self.clock.wait(self.now)

    def result(self, chunk: int, busy: int, decode: int = 0) -> None:
        """A chunk is done; see `Runner`."""
        self.clock.counters.chunks += 1
        self.clock.counters.busy_ns += busy
        self.clock.result(0, chunk, busy, decode, self.now)

    def stages(self, batches: int = 12) -> Stages:
        for _ in range(batches):
            self.batch()
        return self.clock.stages()


@pytest.mark.parametrize("stage", ["plan", "queue", "read", "load", "decode", "placement", "copy", "fence", "handover",
                                   "held", "running"])  # fmt: skip
def test_a_wait_is_put_down_to_what_the_batch_was_at(stage: str) -> None:
    stages = Life(**{stage: 20 * MS}).stages()
    causes = stages.causes()
    name = {"handover": "hand-over"}.get(stage, stage)
    assert max(causes, key=causes.__getitem__) == name
    assert causes[name] == pytest.approx(11 * 0.02, rel=0.01)  # without the first batch, which is start-up
    assert sum(causes.values()) == pytest.approx(stages["wait"].seconds, rel=1e-6)
    begin = {"load": "loader-bound: ", "held": "retained batches hold 2 of 3 slots ", "running": "consumer-bound: "}
    text = verdict(stages, executor="process", depth=3, cores=8)
    assert text.startswith(begin.get(stage, f"{name}-bound: ")), text
    if stage not in ("handover", "held", "running"):
        assert stages[stage].seconds == pytest.approx(11 * 0.02, rel=0.02)


def test_a_loop_that_takes_its_time_is_the_limit() -> None:
    life = Life(step=50 * MS, load=10 * US)
    stages = life.stages()
    assert verdict(stages, executor="process", depth=3).startswith("consumer-bound: the loop waited for data 0.")
    assert stages["step"].utilisation > 0.9 and stages.wait_share < 0.05


def test_what_is_slow_and_hidden_is_not_blamed() -> None:
    life = Life()
    clock = life.clock
    for position in range(4):  # each is loaded for 20 ms while the consumer is away, and placed for 3 ms while it waits
        plan = life.plan(position)
        clock.dispatched(0, position, plan, plan.valid, life.now)
        begin = life.now
        life.now += 20 * MS
        life.result(position, life.now - begin)
        life.wait()
        begin = life.now
        life.now += 3 * MS
        clock.placed(plan, 0, begin, copying=False)
        life.leave(position)
    causes = clock.stages().causes()
    assert causes["load"] == 0 and causes["placement"] == pytest.approx(0.009)


def test_the_engine_is_blamed_for_what_it_does_instead() -> None:
    """A batch is loaded, and is not placed because the engine looks up the descriptors of another one."""
    life = Life()
    clock = life.clock
    for position in range(0, 8, 2):
        plan, other = life.plan(position), PLAN._replace(position=position + 1)
        clock.dispatched(0, position, plan, plan.valid, life.now)
        life.wait()
        life.result(position, MS)
        begin = life.now
        life.now += 30 * MS
        life.clock.ways[other.position] = life.clock.ways[position]  # it is looked at, too
        clock.dispatched(1, position + 1, other, other.valid, begin)
        begin = life.now
        clock.placed(plan, 0, begin, copying=False)
        life.leave(position)
    causes = clock.stages().causes()
    assert max(causes, key=causes.__getitem__) == "plan" and causes["plan"] == pytest.approx(0.09, rel=0.01)


def test_quick_batches_are_looked_at_by_sample() -> None:
    life = Life(placement=150 * US)  # 0.4 ms a batch
    stages = life.stages(10_000)
    counts = life.clock.totals.counts
    assert life.clock._every == 7 and not life.clock.ways and not life.clock.chunks
    assert counts[Kind.PLACEMENT] == pytest.approx(10_000, rel=0.01)
    assert stages["placement"].seconds == pytest.approx(1.5, rel=0.02)
    assert stages.causes()["placement"] == pytest.approx(1.5, rel=0.02)
    assert (stages.batches, stages["step"].count, stages["wait"].count) == (9_999, 9_999, 9_999)


def test_lately_is_what_counts() -> None:
    life = Life(load=100 * MS)
    life.stages(40)
    life.delays = {"step": 100 * MS, "load": 10 * US}
    stages = life.stages(200)
    assert stages.recent is not None and stages.recent.wait_share < 0.05 < stages.wait_share
    text = verdict(stages, executor="process", depth=3)
    assert text.startswith("consumer-bound") and "(the whole run: loader-bound, it waited" in text


def test_slots_are_counted_by_what_they_are_at() -> None:
    life = Life()
    life.stages(1)
    slots = SlotTable(4)
    for _ in range(2):
        slots.take()
    slots.filled(0)
    slots.filled(1)
    slots.lend(0)
    slots.take()  # one free, one filling, one full, one lent
    life.clock.look(slots, 0)
    before = life.clock.totals.snapshot(life.now)
    life.now += 10 * MS
    life.clock.look(slots, 0)
    life.now += 30 * MS
    life.clock.look(slots, 1)  # that one in the outbox
    areas = life.clock.totals.since(before, life.now).slots
    assert [round(area / MS) for area in areas] == [40, 40, 40, 30, 10, 0]


def test_nothing_is_kept_of_chunks_that_do_not_come_back() -> None:
    life = Life()
    clock = life.clock
    for position in range(3):
        plan = life.plan(position)
        clock.dispatched(position, position, plan, 1, life.now, cached=position == 2)
    clock.lost(0)
    clock.gone(2)
    clock.result(1, 1, -1, 0, 0)  # found to be done, and told later
    assert set(clock.chunks) == {1}
    clock.result(1, 1, MS, 0, life.now)
    for position in range(3):
        clock.dropped(PLAN._replace(position=position))
    assert not (clock.chunks or clock.ways or clock._cached)


def test_how_many_more_workers() -> None:
    totals = Totals(1000 * MS)
    totals.batches, totals.items = 100, 400
    totals.ns[Kind.LOAD], totals.ns[Kind.WAIT], totals.causes[Cause.LOAD] = 1960 * MS, 600 * MS, 600 * MS
    stages = Stages.of(totals, 2)
    text = verdict(stages, executor="process", depth=3, cores=8)
    assert "the workers (now 2) were busy 98% of it; about 3 more workers would remove the wait, as" in text
    assert "(this machine has 4 processors)" in verdict(stages, executor="process", depth=3, cores=4)
    totals.ns[Kind.LOAD] = 400 * MS
    assert "with a larger depth (now 2)" in verdict(Stages.of(totals, 2), executor="process", depth=2)
    assert "executor='process' would overlap it" in verdict(stages, executor="inline", depth=3)
    assert verdict(Stages(), executor="inline", depth=3) == "too few batches to tell"


def test_stages_can_be_read() -> None:
    stages = Life(load=MS, copy=MS).stages()
    text = str(stages)
    assert text.isascii() and [line.split()[0] for line in text.splitlines()][:5] == [
        "stage", "plan", "queue", "load", "placement",
    ]  # fmt: skip
    assert "copying" in text and "fence" not in text
    with pytest.raises(KeyError, match="no stage 'rest'; there are plan, queue, read"):
        stages["rest"]


# The same through a whole loader.

SECONDS = 0.02


def run(
    load: Any = loaders.fill,
    *,
    data: Any = range(64),
    arrays: Any = ARRAYS,
    step: float = 0.0,
    keep: int = 0,
    **options: Any,
) -> Report:
    options = {"executor": "thread", "end_at": ("batch", 14)} | options
    kept: list[Any] = []
    with Dataloader(load, group(data, 4, loader_arrays=arrays), **options) as it:
        for batch in it:
            take(step)
            kept = [*kept[len(kept) - keep + 1 :], batch] if keep else []
            del batch
        report = it.report()
    kept.clear()
    return report


def slow_placement(arrays: Any, *_: Any) -> Any:
    import jax

    take(4 * SECONDS)
    return {name: jax.numpy.array(array) for name, array in arrays.items()}


DELAYS: dict[str, tuple[Callable[[], Report], str]] = {
    "plan": (lambda: run(data=SlowData(SECONDS)), "plan-bound"),
    "load inline": (lambda: run(SlowLoad(SECONDS), executor="inline"), "loader-bound"),
    "load thread": (lambda: run(SlowLoad(SECONDS), loader_count=2), "loader-bound"),
    "load process": (lambda: run(SlowLoad(SECONDS), executor="process"), "loader-bound"),
    "decode": (
        lambda: run(arrays={"x": ArraySpec((3,), np.float32, np.float32, decode=SlowDecode(4 * SECONDS))}),
        "decode-bound",
    ),
    "placement": (lambda: run(placement_func=slow_placement), "placement-bound"),
    "step": (lambda: run(step=4 * SECONDS), "consumer-bound"),
    "kept": (
        lambda: run(SlowLoad(SECONDS), loader_count=2, keep=2, step=SECONDS, delivery="alias"),
        "retained batches",
    ),
}


@pytest.mark.parametrize("case", DELAYS)
def test_a_delay_is_found(case: str) -> None:
    act, begin = DELAYS[case]
    report = act()
    assert report.verdict.startswith(begin), str(report)
    assert report.stages.batches >= 10 and report.stages.seconds > 0.1
    assert report.verdict in str(report)


class SlowFences(FakeDevice):
    """Each fence takes a while to put up."""

    def fence(self, stream: Any) -> None:
        take(2 * SECONDS)
        super().fence(stream)


class SlowCopies(FakeDevice):
    """Each event is reached a while after it was first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, int] = {}

    def done(self, event: Any) -> bool:
        self.asked[id(event)] = self.asked.get(id(event), 0) + 1
        if self.asked[id(event)] < 25:  # the engine asks every millisecond
            return False
        if found := super().done(event):
            del self.asked[id(event)]
        return found


@pytest.mark.parametrize(("device", "begin"), [(SlowFences, "fence-bound"), (SlowCopies, "copy-bound")])
def test_a_delay_of_a_device_is_found(device: type[FakeDevice], begin: str) -> None:
    with device().in_use():
        report = run(delivery="alias", depth=2)
    assert report.verdict.startswith(begin), str(report)


def test_nothing_is_measured_before_the_first_batch() -> None:
    with Dataloader(loaders.fill, group(), executor="inline", end_at=("epoch", 1)) as it:
        assert it.report().stages == Stages(workers=1)
        stages = it.report().stages
        assert stages.wait_share == stages.busy_share == 0 and not any(stages.causes().values())
    assert "stage  " not in str(it.report())
