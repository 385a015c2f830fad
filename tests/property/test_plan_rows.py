"""What a process has of a global batch, and one state made of those of all processes. Arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._plan import BatchPlan, GroupPlan, Plan, block_of, common_part, merge_states, to_state, union


@st.composite
def batches(draw: st.DrawFn) -> BatchPlan:
    length, size = draw(st.integers(1, 60)), draw(st.integers(1, 24))
    remainder: Any = draw(st.sampled_from(["drop", "pad", "short"]))
    if remainder == "drop" and size > length:
        remainder = "pad"
    plan = Plan([GroupPlan(length, size, draw(st.integers(0, 99)), True, "itemwise", remainder)])
    # the last one of a pass is the one that may be padded or short
    pass_ = draw(st.integers(0, 3))
    return plan.at(pass_ * plan.batches_per_epoch + draw(st.integers(0, plan.batches_per_epoch - 1)))


def content(plan: BatchPlan) -> list[tuple[int, int | None]]:
    """What the rows hold once the first `valid` ones are loaded and repeated, as `(item, seed)`."""
    seeds = plan.seeds if plan.seeds is not None else [None] * plan.rows
    loaded = list(zip(plan.indices, seeds, strict=True))[: plan.valid]
    return [loaded[row % plan.valid] for row in range(plan.rows)]


@given(batches(), st.data())
def test_a_share_has_the_rows_of_the_global_batch(batch: BatchPlan, data: st.DataObject) -> None:
    rows = data.draw(st.sets(st.integers(0, batch.rows - 1), min_size=1).map(sorted))
    share = batch.of_rows(union([range(row, row + 1) for row in rows]))
    whole = content(batch)
    assert content(share) == [whole[row] for row in rows], "repeating the loaded rows gives the rows of the batch"
    assert share.indices == [batch.indices[row] for row in rows]
    assert share.real_rows == sum(row < batch.valid for row in rows)
    assert share.global_indices == batch.indices
    assert (share.position, share.number, share.epoch, share.seed) == (
        batch.position, batch.number, batch.epoch, batch.seed,
    )  # fmt: skip
    if len(rows) == batch.rows:
        assert share._replace(share=None) == batch


@given(batches(), st.data())
def test_a_window_of_a_padded_batch_loads_each_item_once(batch: BatchPlan, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, batch.rows - 1))
    share = batch.of_rows(range(begin, data.draw(st.integers(begin + 1, batch.rows))))
    assert share.valid == min(share.rows, batch.valid)
    assert len(set(share.indices[: share.valid])) == share.valid


@given(batches(), st.integers(1, 24), st.data())
def test_blocks_are_disjoint_and_complete(batch: BatchPlan, processes: int, data: st.DataObject) -> None:
    if batch.rows % processes:
        with pytest.raises(ValueError, match="cannot be cut"):
            block_of(batch.rows, 0, processes)
        return
    shares = [batch.of_rows(block_of(batch.rows, process, processes)) for process in range(processes)]
    assert [item for share in shares for item in share.indices] == batch.indices
    assert sum(share.real_rows for share in shares) == batch.valid
    assert len({share.rows for share in shares}) == 1


@given(batches(), st.data())
def test_a_substitute_goes_to_all_rows_that_repeat_its_row(batch: BatchPlan, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, batch.rows - 1))
    share = batch.of_rows(range(begin, data.draw(st.integers(begin + 1, batch.rows))))
    row = data.draw(st.integers(0, share.valid - 1))
    bad = share.indices[row]
    after = share.with_substitute(row, 1000, 7)
    assert bad not in after.indices and 1000 in after.indices
    assert content(after) == [(1000, 7) if item == bad else (item, seed) for item, seed in content(share)]
    assert after.global_indices == batch.indices, "as planned, on every process the same"


@pytest.mark.parametrize("rows", [[], [2, 1], [1, 1], [-1, 0], [7, 8], range(0), range(2, 0, -1)])
def test_other_rows_are_refused(rows: Any) -> None:
    batch = Plan([GroupPlan(16, 8, 0, False, "itemwise", "drop")]).at(0)
    with pytest.raises(ValueError, match="from 0 to 7"):
        batch.of_rows(rows)


def test_a_share_cannot_be_shared() -> None:
    batch = Plan([GroupPlan(16, 8, 0, False, "itemwise", "drop")]).at(0)
    with pytest.raises(ValueError, match="share of a batch already"):
        batch.of_rows(range(4)).of_rows(range(2))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=8))
def test_union_is_that_of_sets(pairs: list[tuple[int, int]]) -> None:
    parts = [range(begin, begin + count) for begin, count in pairs]
    rows = union(parts)
    assert list(rows) == sorted(set().union(*parts))
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        assert isinstance(rows, range), "a window costs nothing to keep"


# States.


def state_of(position: int, own: list[list[Any]] | None = None, **more: Any) -> dict[str, Any]:
    plan = Plan([GroupPlan(16, 8, 0, False, "itemwise", "drop")])
    state = {**to_state(plan, position), "bad": [[0, 0, 3, 0, 2, 0, "old"]], "dropped": 0, **more}
    return state if own is None else {**state, "process": {"bad": own}}


def test_merged_states_have_what_each_process_has_found() -> None:
    states = [
        state_of(5, [[0, 0, 3, 1, 1, 0, "again"], [0, 0, 9, 1, 1, 1, "died"]]),
        state_of(5, [[0, 0, 9, 2, 2, 0, "raised"]]),
        state_of(5, []),
    ]
    merged = merge_states(json.loads(json.dumps(states)))
    assert merged["bad"] == [[0, 0, 3, 0, 3, 0, "old"], [0, 0, 9, 1, 3, 1, "died"]]
    assert "process" not in merged
    assert common_part(states[0]) == common_part(states[1]), "this is what processes compare"
    assert merge_states([merged, merged]) == merged, "merging again counts nothing twice"


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "got none"),
        ([state_of(5, []), state_of(6, [])], "epoch is 2 on process 0 and 3 on process 1"),
        ([state_of(5, []), state_of(5, []), state_of(5, [], dropped=1)], "dropped is 0 on .* and 1 on process 2"),
        ([state_of(5, []), state_of(5, [], extra=1)], "extra is 'absent' on process 0 and 1 on process 1"),
        ([{**state_of(5), "process": []}], "must be a dict"),
        ([{**state_of(5), "process": {"bad": [[1]]}}], "lists of six integers"),
    ],
)
def test_states_that_do_not_belong_together_are_refused(states: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merge_states(states)
