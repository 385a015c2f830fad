"""Entries that several processes have agreed to read, and one of them cannot, as the engine's core deals with them."""

from __future__ import annotations

from collections.abc import Sequence

from hydrax_gpu._engine.cached import UNREAD, Form
from hydrax_gpu._engine.core import Core, CoreConfig
from hydrax_gpu._engine.faults import FaultRules
from hydrax_gpu._engine.messages import Dispatch, Effect, Fail, Place, Settled, Start, Unread
from hydrax_gpu._exec.protocol import Result, WorkerReady
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.errors import CacheDamaged, CacheError, LoaderError, TooManyBadItems
from hydrax_gpu.policy import Mode
from tests.small import engine_plan


class Shelf:
    """All is in the cache, as all processes agree; some items of it cannot be read here."""

    def __init__(self, bad: set[int], *, unsure: bool = False, shared: set[int] | None = None) -> None:
        self.bad, self.unsure, self.shared = bad, unsure, shared or set()
        self.outside: set[int] = set()  # items that are not in it, and must not be substitutes

    def form(self, plan: BatchPlan) -> Form:
        return Form.WAIT if self.unsure else Form.READ

    def loads(self, plan: BatchPlan) -> bool:
        raise AssertionError("others would not know of that")

    def stands_in(self, plan: BatchPlan, item: int) -> bool:
        return item not in self.outside

    def refusal(self, plan: BatchPlan, rows: Sequence[int]) -> Exception | None:
        items = [plan.indices[row] for row in rows if plan.indices[row] in self.shared]
        return CacheDamaged("latents", "training group 0", items) if items else None


class World:
    def __init__(self, shelf: Shelf, mode: Mode = "replace") -> None:
        plan = engine_plan(6)
        self.plan, self.shelf = plan, shelf
        self.core = Core(
            CoreConfig(
                plan=plan.at, begin=0, end=plan.end_position, skip=(), depth=2, workers=1, caching=shelf, agreed=shelf,
                faults=FaultRules(mode=mode, substitutes=plan.substitutes),
            )
        )  # fmt: skip
        self.reads: list[list[int]] = []
        self.placed: list[BatchPlan] = []
        self.told: list[list[int]] = []
        self.error: Exception | None = None
        self.take([*self.core.step(WorkerReady(0, 1, 1, False)), *self.core.step(Start())])

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Dispatch():
                    assert effect.load.cached
                    indices = effect.load.plan.indices[effect.begin : effect.end]
                    self.reads.append(indices)
                    unread = tuple(at for at, item in enumerate(indices) if item in self.shelf.bad)
                    extra = [{"item": item} for item in indices]
                    answer = Result(0, effect.chunk, -1, extra, (), unread=unread)
                    self.take(self.core.step(answer))
                case Place(load):
                    self.placed.append(load.plan)
                    assert load.additional is not None
                    assert [each and each["item"] for each in load.additional] == load.plan.indices[: load.plan.valid]
                case Unread(_, rows, plan):
                    self.told.append([plan.indices[row] for row in rows])
                case Fail(error):
                    self.error = error
                case _:
                    pass


def test_others_that_are_agreed_on_are_read_in_their_place() -> None:
    first = engine_plan(6).at(0)
    bad = set(first.indices[1:3])
    shelf = Shelf(bad)
    shelf.outside.add(next(engine_plan(6).substitutes(first, 1))[0])
    world = World(shelf)
    assert world.error is None
    plan = world.placed[0]
    assert plan.replaced == (1, 2) and plan.position == 0
    assert not {plan.indices[1], plan.indices[2]} & (bad | shelf.outside) and plan.indices[0] == first.indices[0]
    assert world.told[0] == first.indices[1:3], "which entries they were, and not what came in their place"
    assert world.reads[0] == first.indices and all(len(read) == 1 for read in world.reads[1:3])


def test_when_nothing_can_be_read_not_everything_is_tried() -> None:
    world = World(Shelf(set(range(100))))
    assert isinstance(world.error, TooManyBadItems) and UNREAD.error in str(world.error)
    assert world.placed == [] and len(world.reads) < 200


def test_a_policy_that_raises_does() -> None:
    item = engine_plan(6).at(0).indices[2]
    world = World(Shelf({item}), "raise")
    assert isinstance(world.error, LoaderError) and world.error.item_index == item
    assert "cache verify" in str(world.error) and world.placed == []


def test_a_row_that_others_have_ends_the_run_when_it_is_due() -> None:
    second = engine_plan(6).at(1)
    item = second.indices[0]
    assert item not in engine_plan(6).at(0).indices
    world = World(Shelf({item}, shared={item}))
    assert [plan.position for plan in world.placed] == [0], "and not before"
    assert isinstance(world.error, CacheDamaged) and world.error.items == [item]


def test_batches_wait_until_there_is_an_agreement_or_none() -> None:
    shelf = Shelf(set(), unsure=True)
    world = World(shelf)
    assert world.placed == [] and world.reads == []
    shelf.unsure = False
    world.take(world.core.step(Settled()))
    assert [plan.position for plan in world.placed] == [0, 1]

    failed = World(Shelf(set(), unsure=True))
    failed.take(failed.core.step(Settled(CacheError("they differ"))))
    assert isinstance(failed.error, CacheError) and failed.placed == []
