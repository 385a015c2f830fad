"""Which item stands in for a bad one: arithmetic, and fair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._plan import GroupPlan, Plan, ValidationPlan, item_seeds
from hydrax_gpu._plan.substitutes import TRIES, substitutes


def group_of(
    length: int, *, seed: int = 0, later: str = "itemwise", size: int = 4, remainder: str = "pad"
) -> GroupPlan:
    return GroupPlan(
        length=length,
        batch_size=size,
        seed=seed,
        shuffle_first=True,
        shuffle_later=later,  # pyright: ignore[reportArgumentType]
        remainder="pad",
        weight=None,
    )


@given(st.integers(2, 5000), st.integers(0, 2**63), st.integers(0, 1000), st.data())
def test_substitutes_are_other_items_each_once_and_always_the_same(
    length: int, seed: int, pass_: int, data: st.DataObject
) -> None:
    item = data.draw(st.integers(0, length - 1))
    group = group_of(length, seed=seed)
    found = list(substitutes(group, pass_, item, seeded=True))
    items = [index for index, _ in found]
    assert len(items) == min(length - 1, TRIES) == len(set(items))
    assert item not in items and all(0 <= index < length for index in items)
    assert found == list(substitutes(group, pass_, item, seeded=True))
    for index, item_seed in found[:3]:
        assert item_seed == item_seeds(seed, pass_, np.array([index], np.int64))[0], "the seed it has in this pass"


def test_an_item_that_is_alone_has_no_substitute() -> None:
    assert list(substitutes(group_of(1), 0, 0, seeded=True)) == []


def test_first_substitutes_of_different_items_are_hardly_ever_the_same() -> None:
    # The cyclic order gives each item the one that follows it; one that would follow itself, of which there is one in
    # a random order on average, takes its neighbour's.
    different = 0
    for pass_ in range(100):
        different += len({next(substitutes(group_of(50), pass_, item, seeded=True))[0] for item in range(50)})
    assert 48.5 < different / 100 < 49.5


def test_over_many_passes_every_item_stands_in_about_equally_often() -> None:
    count = Counter(next(substitutes(group_of(10), pass_, 3, seeded=True))[0] for pass_ in range(9000))
    assert set(count) == set(range(10)) - {3}
    # Binomial with n = 9000 and p near 1/9: 5 standard deviations are some 150. One of the nine is chosen a little
    # more often, because it also stands in where the item would have followed itself.
    assert all(700 <= number <= 1250 for number in count.values())


@pytest.mark.parametrize(("later", "differ"), [("itemwise", True), ("reseed", True), ("repeat", False)])
def test_passes_that_repeat_each_other_repeat_their_substitutes(later: str, differ: bool) -> None:
    group = group_of(1000, later=later)
    passes = {tuple(substitutes(group, pass_, 5, seeded=True)) for pass_ in range(4)}
    assert len(passes) == (4 if differ else 1)
    assert len({tuple(substitutes(group, pass_, 5, seeded=False)) for pass_ in range(4)}) == 1


def test_a_row_and_the_padding_that_repeats_it_are_replaced_together() -> None:
    training = group_of(10, size=8)
    plan = Plan([training], validation=ValidationPlan("epoch", 1, (group_of(3, size=2),)), end=("epoch", 1))
    batch = plan.at(1)
    assert (batch.rows, batch.valid) == (8, 2)
    changed = batch.with_substitute(1, 77, 5).with_substitute(0, 78, 6)
    assert changed.indices == [78, 77] * 4 and changed.seeds == [6, 5] * 4 and changed.replaced == (0, 1)
    assert batch.replaced == () and 77 not in batch.indices, "the plan itself is not touched"
    validation = plan.at(2)
    assert validation.validation and validation.with_substitute(0, 2, None).seeds is None
    assert {seed for _, seed in plan.substitutes(validation, 0)} == {None}
    assert len({item for item, _ in plan.substitutes(validation, 0)}) == 2
