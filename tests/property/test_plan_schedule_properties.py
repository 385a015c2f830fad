"""Schedules against their definitions, step by step, and seeks against the walk."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._plan.schedule import (
    MAX_PERIOD,
    InterleavedSchedule,
    SequentialSchedule,
    WeightedSchedule,
    exact_ratios,
)

counts_of_groups = st.lists(st.integers(1, 15), min_size=1, max_size=6)
weights_of_groups = st.lists(
    st.one_of(
        st.fractions(Fraction(1, 20), 20, max_denominator=20),
        st.integers(1, 9),
        st.floats(0.01, 1).map(lambda w: round(w, 2)),
    ),
    min_size=1,
    max_size=6,
)


def _walk_interleaved(counts: list[int], steps: int) -> list[tuple[int, int, int]]:
    walk: list[tuple[int, int, int]] = []
    used = [0] * len(counts)
    for step in range(steps):
        if step % sum(counts) == 0:
            used = [0] * len(counts)
        group = min(range(len(counts)), key=lambda g: (Fraction(used[g], counts[g]), g))
        walk.append((group, step // sum(counts), used[group]))
        used[group] += 1
    return walk


@settings(deadline=None)
@given(counts=counts_of_groups, data=st.data())
def test_interleaved_is_the_least_used_group_at_every_step(counts: list[int], data: st.DataObject) -> None:
    walk = _walk_interleaved(counts, 2 * sum(counts) + 3)
    schedule = InterleavedSchedule(counts)
    assert [schedule.locate(step) for step in range(len(walk))] == walk
    for step in data.draw(st.lists(st.integers(0, len(walk) - 1), max_size=20)):
        assert schedule.locate(step) == walk[step]
        assert InterleavedSchedule(counts).locate(step) == walk[step]


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 10**12), min_size=1, max_size=6), data=st.data())
def test_interleaved_seeks_deep_into_huge_epochs(counts: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 3 * sum(counts)))
    walked = InterleavedSchedule(counts)
    walked.locate(start)
    for step in range(start + 1, start + 6):
        assert walked.locate(step) == InterleavedSchedule(counts).locate(step)


@given(counts=counts_of_groups)
def test_sequential_is_one_group_after_the_other(counts: list[int]) -> None:
    epoch = [(group, batch) for group, count in enumerate(counts) for batch in range(count)]
    schedule = SequentialSchedule(counts)
    for step in reversed(range(3 * len(epoch))):
        group, pass_, batch = schedule.locate(step)
        assert (group, batch) == epoch[step % len(epoch)]
        assert pass_ == step // len(epoch)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), weights=weights_of_groups)
def test_weighted_never_strays_a_whole_batch_from_the_ratio(
    data: st.DataObject, weights: list[int | float | Fraction]
) -> None:
    counts = [data.draw(st.integers(1, 7)) for _ in weights]
    schedule = WeightedSchedule(counts, weights)
    bound = 1 - Fraction(1, max(2, 2 * len(weights) - 2))
    period = max(ratio.denominator for ratio in schedule.ratios)
    done = [0] * len(weights)
    walk: list[tuple[int, int, int]] = []
    for step in range(min(2 * period + 3, 1500)):
        group, pass_, batch = schedule.locate(step)
        walk.append((group, pass_, batch))
        # A group's batches follow each other through its own passes.
        assert pass_ * counts[group] + batch == done[group]
        assert 0 <= batch < counts[group]
        done[group] += 1
        for count, ratio in zip(done, schedule.ratios, strict=True):
            assert abs(count - (step + 1) * ratio) <= bound
    for step in data.draw(st.lists(st.integers(0, len(walk) - 1), max_size=20)):
        assert schedule.locate(step) == walk[step]


@given(weights=weights_of_groups)
def test_ratios_are_those_of_the_weights(weights: list[int | float | Fraction]) -> None:
    ratios = exact_ratios(weights)
    assert sum(ratios) == 1
    exact = [Fraction(str(weight)) for weight in weights]
    for ratio, weight in zip(ratios, exact, strict=True):
        share = weight / sum(exact)
        assert ratio == share or abs(ratio - share) < Fraction(len(weights) + 1, MAX_PERIOD)
