"""The stream of batches by example: what a reader of the documentation would try."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._plan import BatchPlan, GroupPlan, Plan, ValidationPlan, batch_seed, item_seeds

GROUP = GroupPlan(length=10, batch_size=4, seed=5, shuffle_first=False, shuffle_later="itemwise", remainder="drop")


def _epoch(plan: Plan, epoch: int) -> list[BatchPlan]:
    return [plan.at(plan.position_of_step(epoch * plan.batches_per_epoch + b)) for b in range(plan.batches_per_epoch)]


def _items(batches: list[BatchPlan]) -> list[list[int]]:
    return [batch.indices for batch in batches]


def _flat(batches: list[list[int]]) -> list[int]:
    return [item for batch in batches for item in batch]


def test_each_way_with_the_last_batch() -> None:
    drop = Plan([GROUP])
    assert _items(_epoch(drop, 0)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert GROUP.remainder_items == 2
    short = Plan([replace(GROUP, remainder="short")])
    assert _items(_epoch(short, 0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [(batch.rows, batch.valid) for batch in _epoch(short, 0)] == [(4, 4), (4, 4), (2, 2)]
    pad = Plan([replace(GROUP, remainder="pad")])
    assert _items(_epoch(pad, 0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9]]
    assert [(batch.rows, batch.valid) for batch in _epoch(pad, 0)] == [(4, 4), (4, 4), (4, 2)]
    padded = _epoch(pad, 0)[2].seeds
    assert padded is not None
    assert padded[:2] == padded[2:]


def test_a_group_smaller_than_a_batch_is_padded_around() -> None:
    group = GroupPlan(3, 8, 1, shuffle_first=False, shuffle_later="itemwise", remainder="pad")
    batch = Plan([group]).at(0)
    assert (batch.indices, batch.rows, batch.valid) == ([0, 1, 2, 0, 1, 2, 0, 1], 8, 3)


def test_each_way_of_later_epochs() -> None:
    group = GroupPlan(40, 4, 5, shuffle_first=True, shuffle_later="repeat", remainder="drop")
    epochs: dict[str, list[list[BatchPlan]]] = {}
    for later in ("repeat", "reseed", "itemwise", "batchwise"):
        plan = Plan([replace(group, shuffle_later=later)])  # pyright: ignore[reportArgumentType]
        epochs[later] = [_epoch(plan, epoch) for epoch in range(3)]
    first = epochs["repeat"][0]
    content = [(b.group_batch, b.indices, b.seeds, b.seed) for b in first]
    assert [b.group_batch for b in first] == list(range(10))
    assert sorted(_flat(_items(first))) == list(range(40))
    assert _flat(_items(first)) != list(range(40))
    for later in epochs:
        assert _items(epochs[later][0]) == _items(first)
        assert [b.seeds for b in epochs[later][0]] == [b.seeds for b in first]
    for epoch in (1, 2):
        assert [(b.group_batch, b.indices, b.seeds, b.seed) for b in epochs["repeat"][epoch]] == content
        assert _items(epochs["reseed"][epoch]) == _items(first)
        moved = [(b.group_batch, b.indices, b.seeds, b.seed) for b in epochs["batchwise"][epoch]]
        assert moved != content
        assert sorted(moved) == sorted(content)
        items = _items(epochs["itemwise"][epoch])
        assert items != _items(first)
        assert sorted(_flat(items)) == list(range(40))
        assert [b.group_batch for b in epochs["itemwise"][epoch]] == list(range(10))
        for later in ("reseed", "itemwise"):
            for b in epochs[later][epoch]:
                assert b.seeds == item_seeds(5, epoch, np.array(b.indices)).tolist()
                assert b.seed == batch_seed(5, epoch, b.group_batch)
    assert _items(epochs["itemwise"][1]) != _items(epochs["itemwise"][2])


def test_without_shuffle_first_only_the_first_epoch_is_in_order() -> None:
    plan = Plan([replace(GROUP, length=12)])
    assert _flat(_items(_epoch(plan, 0))) == list(range(12))
    assert _flat(_items(_epoch(plan, 1))) != list(range(12))


def test_the_stream_stays_what_it_is() -> None:
    # A change here is a change of every user's run: ORDER_VERSION goes up with it.
    plan = Plan([GroupPlan(10**6, 4, 42, shuffle_first=True, shuffle_later="itemwise", remainder="drop")])
    batch = plan.at(300_000)
    assert (batch.epoch, batch.indices, batch.seeds, batch.seed) == GOLDEN


GOLDEN: tuple[Any, ...] = (
    1,
    [227111, 854995, 700926, 153026],
    [2535417180660466741, 6824087472167921346, 3252207176390361051, 2415238336780216807],
    6596596931976361248,
)


def test_the_pattern_of_training_and_validation_repeats() -> None:
    validation = ValidationPlan("epoch", 1, (replace(GROUP, remainder="short", length=8),))
    plan = Plan([replace(GROUP, length=16)], validation=validation, end=("epoch", 3))
    stream = [plan.at(position) for position in range(plan.end_position or 0)]
    assert "".join("V" if b.validation else "T" for b in stream) == "TTTTVV" * 3
    assert [b.number for b in stream if not b.validation] == list(range(12))
    assert [b.number for b in stream if b.validation] == list(range(6))
    assert [(b.epoch, b.epoch_batch) for b in stream if b.validation] == [(e, i) for e in range(3) for i in range(2)]
    for b in stream:
        assert b.position == stream.index(b)
        if b.validation:
            assert (b.seeds, b.seed) == (None, 0)
            assert b.indices == [[0, 1, 2, 3], [4, 5, 6, 7]][b.epoch_batch]


def test_validation_keeps_its_first_order() -> None:
    shuffled = replace(GROUP, shuffle_first=True)
    plan = Plan([GROUP], validation=ValidationPlan("batch", 3, (shuffled,)))
    passes = [[plan.at(p).indices for p in (first, first + 1)] for first in (3, 8, 13)]
    assert passes[0] == passes[1] == passes[2] == _items(_epoch(Plan([shuffled]), 0))


def test_validation_goes_through_all_its_groups() -> None:
    groups = (GROUP, replace(GROUP, length=16))
    for interleave, order in ((True, [0, 1, 1, 0, 1, 1]), (False, [0, 0, 1, 1, 1, 1])):
        plan = Plan([GROUP], validation=ValidationPlan("batch", 1, groups), interleave=interleave)
        assert [plan.at(1 + i).group for i in range(6)] == order
        assert plan.batches_per_validation == 6


def test_the_end_is_where_it_was_asked_for() -> None:
    validation = ValidationPlan("batch", 3, (GROUP,))
    endless = Plan([GROUP], validation=validation)
    assert (endless.end_position, endless.end_step, endless.last_step) == (None, None, None)
    for end, stream in (
        (("batch", 0), ""),
        (("batch", 2), "TT"),
        (("batch", 3), "TTTVV"),  # the validation that is due is not lost
        (("epoch", 2), "TTTVVT"),
    ):
        plan = Plan([GROUP], validation=validation, end=end)  # pyright: ignore[reportArgumentType]
        assert plan.end_position == len(stream)
        assert plan.end_step == stream.count("T")
        assert plan.last_step == stream.count("T") - 1
        assert "".join("V" if plan.at(p).validation else "T" for p in range(len(stream))) == stream
        with pytest.raises(IndexError, match=rf"positions from 0 to {len(stream) - 1}, got {len(stream)}"):
            plan.at(len(stream))
    with pytest.raises(IndexError, match="positions from 0 on, got -1"):
        endless.at(-1)


def test_weighted_groups_go_through_passes_of_their_own() -> None:
    group = GroupPlan(8, 4, 5, shuffle_first=True, shuffle_later="itemwise", remainder="drop", weight=0.75)
    plan = Plan([group, replace(group, length=80, weight=0.25)])
    assert plan.ratios == (Fraction(3, 4), Fraction(1, 4))
    assert plan.batches_per_epoch == 22
    stream = [plan.at(step) for step in range(200)]
    small = [b for b in stream if b.group == 0]
    assert len(small) == 150
    assert [(b.group_pass, b.group_batch) for b in small] == [divmod(k, 2) for k in range(150)]
    assert [b.epoch for b in stream] == [step // 22 for step in range(200)]
    for b in small:
        assert b.seeds == item_seeds(5, b.group_pass, np.array(b.indices)).tolist()
    for first, second in zip(small[::2], small[1::2], strict=True):
        assert sorted(first.indices + second.indices) == list(range(8))


def test_the_millionth_batch_of_a_billion_items_takes_no_memory() -> None:
    group = GroupPlan(10**9, 64, 1, shuffle_first=True, shuffle_later="itemwise", remainder="short")
    Plan([group]).at(0)
    tracemalloc.start()
    try:
        plan = Plan([group])
        plan.at(10**6)
        plan.at(10**9)
        plan.at(0)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_run_longer_than_its_seeds_are_keyed_for_says_so() -> None:
    plan = Plan([replace(GROUP, length=4)])
    assert plan.at(2**32 - 1).epoch == 2**32 - 1
    with pytest.raises(ValueError, match=r"2\*\*32 times, but the position asked for is in pass 4294967296"):
        plan.at(2**32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, r"between 1 and 2\*\*62 items, got 0. Leave an empty group out"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, r"seed must be in \[0, 2\*\*64\)"),
        ({"shuffle_later": "default"}, "shuffle_later must be one of 'repeat', .*, got 'default'"),
        ({"remainder": "keep"}, "remainder must be one of 'drop', 'pad', 'short', got 'keep'"),
        (
            {"batch_size": 11},
            "batch_size 11 is more than the 10 items .* Use remainder='pad' or 'short', or .* at most 10",
        ),
    ],
)
def test_a_group_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GROUP, **change)


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one training group, got none"):
        Plan([])
    with pytest.raises(ValueError, match="every training group has a weight or none, but group 1 has none"):
        Plan([replace(GROUP, weight=1), GROUP])
    with pytest.raises(
        ValueError, match=r"end must be \('batch', n\) or \('epoch', n\) with n >= 0, got \('epoch', -1\)"
    ):
        Plan([GROUP], end=("epoch", -1))
    with pytest.raises(ValueError, match="validation group 0 has weight 2"):
        ValidationPlan("batch", 1, (replace(GROUP, weight=2),))
    with pytest.raises(ValueError, match="interval of validation must be at least 1, got 0"):
        ValidationPlan("batch", 0, (GROUP,))
    with pytest.raises(ValueError, match="at least one group, got none"):
        ValidationPlan("batch", 1, ())
    with pytest.raises(ValueError, match="'batch' or 'epoch', got 'step'"):
        ValidationPlan("step", 1, (GROUP,))  # pyright: ignore[reportArgumentType]
