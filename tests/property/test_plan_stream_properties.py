"""Plans of any make: a seek gives what the walk gives, epochs are whole, states come back."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._plan import (
    BatchPlan,
    GroupPlan,
    Plan,
    ValidationPlan,
    batch_seed,
    from_state,
    item_seeds,
    permute,
    to_state,
)
from hydrax_gpu._plan.philox import Purpose


@st.composite
def groups(draw: st.DrawFn, *, longest: int = 60, weight: bool = False) -> GroupPlan:
    remainder = draw(st.sampled_from(["drop", "pad", "short"]))
    length = draw(st.integers(1, longest))
    size = draw(st.integers(1, length if remainder == "drop" else 2 * length))
    return GroupPlan(
        length=length,
        batch_size=size,
        seed=draw(st.integers(0, 2**64 - 1)),
        shuffle_first=draw(st.booleans()),
        shuffle_later=draw(st.sampled_from(["repeat", "reseed", "itemwise", "batchwise"])),
        remainder=remainder,
        weight=draw(st.integers(1, 9)) if weight else None,
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    weighted = draw(st.booleans())
    training = draw(st.lists(groups(weight=weighted), min_size=1, max_size=3))
    validation = None
    if draw(st.booleans()):
        validation = ValidationPlan(
            draw(st.sampled_from(["batch", "epoch"])),
            draw(st.integers(1, 5)),
            tuple(draw(st.lists(groups(longest=9), min_size=1, max_size=2))),
        )
    return Plan(training, validation=validation, interleave=draw(st.booleans()))


def _fresh(plan: Plan) -> Plan:
    return Plan(plan.training, validation=plan.validation, interleave=plan.interleave)


@settings(max_examples=60, deadline=None)
@given(plan=plans(), positions=st.lists(st.integers(0, 300), min_size=1, max_size=15))
def test_any_access_gives_what_the_walk_gives(plan: Plan, positions: list[int]) -> None:
    walk = [plan.at(position) for position in range(max(positions) + 1)]
    other = _fresh(plan)
    for position in positions:
        assert other.at(position) == plan.at(position) == walk[position]
    assert _fresh(plan).at(positions[0]) == walk[positions[0]]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    length=st.integers(1, 10**12),
    size=st.integers(1, 300),
    later=st.sampled_from(["repeat", "reseed", "itemwise", "batchwise"]),
)
def test_blocks_have_no_seams(data: st.DataObject, length: int, size: int, later: str) -> None:
    group = GroupPlan(length, size, 3, True, later, data.draw(st.sampled_from(["pad", "short"])))  # pyright: ignore
    walked = Plan([group])
    count = group.batch_count
    # Block borders are somewhere near these, and at the ends of passes.
    start = max(0, data.draw(st.sampled_from([0, count, 2 * count, 7 * count, count // 2])) - 3)
    for position in range(start, start + 6):
        assert walked.at(position) == Plan([group]).at(position)


@settings(max_examples=100, deadline=None)
@given(
    group=st.one_of(groups(longest=300), groups(longest=30_000)),
    seeks=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 2**62)), min_size=1, max_size=8),
)
def test_a_batch_is_what_the_definition_says(group: GroupPlan, seeks: list[tuple[int, int]]) -> None:
    plan = Plan([group])
    later, seed = group.shuffle_later, group.seed
    for epoch, place in seeks:
        place %= group.batch_count
        content = np.array([place], np.int64)
        if later == "batchwise" and epoch > 0:
            content = permute(group.batch_count, seed, epoch, content, purpose=Purpose.BATCH_ORDER)
        items = np.arange(group.length, dtype=np.int64)
        if later == "itemwise" and epoch > 0:
            items = permute(group.length, seed, epoch, items)
        elif group.shuffle_first:
            items = permute(group.length, seed, 0, items)
        first = int(content[0]) * group.batch_size
        items = items[first : first + group.batch_size]
        valid = len(items)
        if group.remainder == "pad":
            items = np.resize(items, group.batch_size)
        keyed = epoch if later in ("reseed", "itemwise") else 0

        batch = plan.at(epoch * group.batch_count + place)
        assert (batch.group_batch, batch.valid, batch.rows) == (content[0], valid, len(items))
        assert batch.indices == items.tolist()
        assert batch.seeds == item_seeds(seed, keyed, items).tolist()
        assert batch.seed == batch_seed(seed, keyed, int(content[0]))


@settings(max_examples=60, deadline=None)
@given(group=groups(longest=300), epoch=st.integers(0, 20))
def test_an_epoch_has_every_item_once_or_all_but_the_remainder(group: GroupPlan, epoch: int) -> None:
    plan = Plan([group])
    first = epoch * plan.batches_per_epoch
    batches = [plan.at(position) for position in range(first, first + plan.batches_per_epoch)]
    for batch in batches:
        assert batch.epoch == batch.group_pass == epoch
        assert batch.seeds is not None
        assert len(batch.indices) == len(batch.seeds) == batch.rows
        assert batch.rows == (batch.valid if group.remainder != "pad" else group.batch_size)
        for row in range(batch.valid, batch.rows):
            assert batch.indices[row] == batch.indices[row - batch.valid]
            assert batch.seeds[row] == batch.seeds[row - batch.valid]
    seen = Counter(item for batch in batches for item in batch.indices[: batch.valid])
    assert set(seen.values()) == {1}
    assert len(seen) == group.length - group.remainder_items
    assert set(seen) <= set(range(group.length))
    assert sum(batch.valid < group.batch_size for batch in batches) <= 1


@settings(max_examples=40, deadline=None)
@given(group=groups(longest=300), epoch=st.integers(1, 20))
def test_batchwise_moves_whole_batches_and_their_seeds(group: GroupPlan, epoch: int) -> None:
    group = GroupPlan(group.length, group.batch_size, group.seed, group.shuffle_first, "batchwise", group.remainder)
    plan = Plan([group])
    count = plan.batches_per_epoch

    def content(batch: BatchPlan) -> tuple[object, ...]:
        return batch.group_batch, batch.rows, batch.valid, batch.indices, batch.seeds, batch.seed

    first = [content(plan.at(step)) for step in range(count)]
    assert [batch[0] for batch in first] == list(range(count))
    later = [content(plan.at(epoch * count + step)) for step in range(count)]
    assert sorted(later, key=lambda batch: int(str(batch[0]))) == first


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_the_stream_is_interval_training_then_validation_for_ever(plan: Plan) -> None:
    interval = 10**9
    if plan.validation is not None:
        interval = plan.validation.interval * (plan.batches_per_epoch if plan.validation.mode == "epoch" else 1)

    def naive() -> list[tuple[bool, int, int, int]]:
        stream: list[tuple[bool, int, int, int]] = []
        step = passes = 0
        while len(stream) < 200:
            stream.append((False, step, *divmod(step, plan.batches_per_epoch)))
            step += 1
            if step % interval == 0:
                for batch in range(plan.batches_per_validation):
                    stream.append((True, passes * plan.batches_per_validation + batch, passes, batch))
                passes += 1
        return stream

    for position, (validation, number, epoch, epoch_batch) in enumerate(islice(naive(), 200)):
        batch = plan.at(position)
        got = (batch.position, batch.validation, batch.number, batch.epoch, batch.epoch_batch)
        assert got == (position, validation, number, epoch, epoch_batch)
        if validation:
            assert (batch.seeds, batch.seed) == (None, 0)
        else:
            assert plan.position_of_step(number) == position


@settings(max_examples=40, deadline=None)
@given(plan=plans(), ahead=st.sets(st.integers(0, 20), max_size=5))
def test_a_state_comes_back_at_every_position(plan: Plan, ahead: set[int]) -> None:
    for position in [*range(60), 10**6 + 7]:
        early = {position + offset for offset in ahead}
        state = to_state(plan, position, early)
        text = json.dumps(state)
        assert json.loads(text) == state
        assert len(text) < 4096
        # In the middle of a validation pass, too.
        assert from_state(_fresh(plan), json.loads(text)) == (position, frozenset(early))
