"""What `loader_count="auto"` and `depth="auto"` come to, by a loader that is simulated."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._engine.tuning import Limits, Setting, Tuner, Window
from tests.simulated_loader import Load, SimulatedLoader

START = Setting(2, 3)


def limits(workers: int = 16, slots: int = 16, cores: float = 2.0) -> Limits:
    return Limits(workers, slots, cores, "their limit", "their limit", "the machine")


def tuned(world: SimulatedLoader, tuner: Tuner, windows: int) -> list[Setting]:
    """The settings of so many windows."""
    history: list[Setting] = []
    for _ in range(windows):
        world.setting = tuner.setting
        history.append(world.setting)
        setting = tuner.feed(world.window())
        assert setting == tuner.setting
        assert 1 <= setting.workers <= tuner.limits.workers
        assert 1 <= setting.slots <= tuner.limits.slots
    return history


def changed(history: list[Setting]) -> int:
    """How often the setting has changed."""
    return sum(one != other for one, other in itertools.pairwise(history))


def best(world: SimulatedLoader, most: Limits) -> float:
    """The rate of the best of many settings."""
    counts = sorted({1, 2, 3, 4, 6, 8, 12, most.workers})
    return max(
        world.rate(Setting(workers, slots))
        for workers in counts if workers <= most.workers
        for slots in {3, most.slots}
    )  # fmt: skip


LOADS = {
    "waits": Load(load=0.08, cpu=0.02),
    "waits and has a consumer": Load(load=0.08, step=0.012, cpu=0.02),
    "processors": Load(load=0.04, cpu=1.0),
    "half and half": Load(load=0.04, cpu=0.4),
    "consumer": Load(load=0.004, step=0.01, cpu=1.0),
    "hand-over": Load(load=0.002, hand_over=0.004, cpu=1.0),
    "together": Load(load=0.06, together=True, cpu=0.05),
    "disk": Load(load=0.04, shared=0.011, cpu=0.05),
    "uneven": Load(load=0.03, step=0.02, spread=0.8, together=True, cpu=0.1),
}


@pytest.mark.parametrize("name", LOADS)
def test_it_comes_close_to_the_best_within_a_few_hundred_batches(name: str) -> None:
    most = limits()
    world = SimulatedLoader(LOADS[name], START, most.cores, noise=0.02)
    tuner = Tuner(START, most)
    while not tuner.settled:
        tuned(world, tuner, 1)
        assert world.batches < 600
    assert world.rate(tuner.setting) >= 0.95 * best(world, most), tuner.why


@settings(max_examples=25, deadline=None)
@given(
    load=st.builds(
        Load,
        load=st.floats(0.002, 0.3),
        step=st.sampled_from([0.0, 0.001, 0.01, 0.05]),
        hand_over=st.sampled_from([0.0, 0.001, 0.01]),
        cpu=st.floats(0.0, 1.0),
        shared=st.sampled_from([0.0, 0.001, 0.02]),
        together=st.booleans(),
        spread=st.floats(0.0, 0.5),
    ),
    most=st.builds(limits, st.integers(2, 24), st.integers(3, 16), st.floats(0.5, 8.0)),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.05, 0.15]),
    workers=st.booleans(),
    slots=st.booleans(),
)
def test_it_keeps_to_its_limits_and_comes_to_rest(
    load: Load, most: Limits, seed: int, noise: float, workers: bool, slots: bool
) -> None:
    world = SimulatedLoader(load, START, most.cores, seed=seed, noise=noise)
    tuner = Tuner(START, most, workers=workers, slots=slots)
    history = tuned(world, tuner, 80)
    if not workers:
        assert {setting.workers for setting in history} == {START.workers}
    if not slots:
        assert {setting.slots for setting in history} == {START.slots}
    changes = changed(history[40:])
    assert changes <= (0 if not noise else 6), "what nothing has happened to is left alone"
    if not noise and workers and slots:
        assert world.rate(tuner.setting) >= 0.85 * best(world, most), tuner.why


@pytest.mark.parametrize(
    ("before", "after"),
    [("consumer", "waits"), ("waits", "consumer"), ("processors", "waits"), ("hand-over", "waits and has a consumer")],
)
def test_another_load_is_noticed(before: str, after: str) -> None:
    most = limits()
    world = SimulatedLoader(LOADS[before], START, most.cores, noise=0.02)
    tuner = Tuner(START, most)
    tuned(world, tuner, 40)
    assert tuner.settled
    world.load = LOADS[after]
    tuned(world, tuner, 40)
    assert tuner.settled
    assert world.rate(tuner.setting) >= 0.93 * best(world, most), tuner.why


def test_a_load_that_keeps_changing_is_followed_less_and_less() -> None:
    """A restart of the search costs; one that never ends would cost for ever."""
    world = SimulatedLoader(LOADS["consumer"], START, 2.0)
    tuner = Tuner(START, limits())
    changes: list[int] = []
    for part in range(24):
        world.load = LOADS["waits" if part % 2 else "consumer"]
        history = tuned(world, tuner, 12)
        changes.append(changed(history))
    assert sum(changes[:6]) > 0
    assert sum(changes[12:]) == 0


def test_a_consumer_that_waits_for_nothing_costs_workers_nothing() -> None:
    world = SimulatedLoader(LOADS["consumer"], Setting(6, 3), 2.0)
    tuner = Tuner(Setting(6, 3), limits())
    tuned(world, tuner, 10)
    assert tuner.settled and tuner.setting.workers <= 2
    assert "waits for data" in tuner.why


def test_where_processors_are_the_limit_nothing_is_tried_beyond_them() -> None:
    world = SimulatedLoader(LOADS["processors"], START, 2.0)
    tuner = Tuner(START, limits(cores=2.0))
    history = tuned(world, tuner, 30)
    assert {setting.workers for setting in history} == {2}
    assert "limited by cores" in tuner.why and "the machine" in tuner.why


def test_workers_that_could_use_all_processors_are_given_slots_and_no_help() -> None:
    """They compute whenever they load, but have to wait for slots, so that processors are left over."""
    tuner = Tuner(START, limits(cores=2.0))
    window = Window(1.0, 90, waited=0.9, loading=0.8, busy=1.6, cpu=1.55, own=0.05)
    assert tuner.feed(window) == (START.workers, START.slots + 1)


@pytest.mark.parametrize(("held", "slots"), [(0.0, 3), (3.0, 4)])
def test_slots_that_the_consumer_keeps_are_made_up_for(held: float, slots: int) -> None:
    window = Window(1.0, 20, 0.5, 0.1, 0.4, 0.01, held=held)
    tuner = Tuner(Setting(1, 3), limits(workers=1))
    assert tuner.feed(window).slots >= slots


def test_what_is_refused_is_not_asked_for_again() -> None:
    world = SimulatedLoader(LOADS["waits"], START, 2.0)
    tuner = Tuner(START, limits())
    while tuner.setting.workers == START.workers:
        tuned(world, tuner, 1)
    tuner.refuse(Setting(3, 3), "the system has no more")
    history = tuned(world, tuner, 40)
    assert max(setting.workers for setting in history) == 3
    assert tuner.settled and "the system has no more" in tuner.why


@settings(max_examples=100, deadline=None)
@given(
    windows=st.lists(
        st.builds(
            Window,
            seconds=st.floats(1e-3, 10.0),
            batches=st.integers(1, 10_000),
            waited=st.floats(0.0, 20.0),
            loading=st.floats(0.0, 20.0),
            busy=st.floats(0.0, 1000.0),
            cpu=st.one_of(st.none(), st.floats(0.0, 100.0)),
            own=st.floats(0.0, 10.0),
            held=st.floats(0.0, 30.0),
        ),
        max_size=40,
    ),
    most=st.builds(limits, st.integers(1, 64), st.integers(1, 64), st.floats(0.01, 300.0)),
)
def test_whatever_is_measured_the_limits_hold(windows: list[Window], most: Limits) -> None:
    tuner = Tuner(Setting(1, 1), most)
    for number, window in enumerate(windows):
        if number == 20:  # memory gets short
            slots = max(tuner.setting.slots, most.slots // 2)
            tuner.limits = replace(most, workers=max(tuner.setting.workers, most.workers // 2), slots=slots)
        setting = tuner.feed(window)
        assert 1 <= setting.workers <= tuner.limits.workers and 1 <= setting.slots <= tuner.limits.slots
        assert tuner.why
