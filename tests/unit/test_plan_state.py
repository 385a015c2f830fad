"""What a state says, and what is said of a state that does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hydrax_gpu._plan import GroupPlan, Plan, ValidationPlan, from_state, to_state
from hydrax_gpu.errors import StateMismatch

GROUP = GroupPlan(16, 4, seed=5, shuffle_first=True, shuffle_later="itemwise", remainder="drop")
VALIDATION = ValidationPlan("epoch", 1, (replace(GROUP, length=8),))
PLAN = Plan([GROUP], validation=VALIDATION)  # TTTTVV


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, (0, 0, None)),
        (3, (0, 3, None)),
        (4, (1, 0, 0)),  # due, not begun
        (5, (1, 0, 1)),  # in progress
        (6, (1, 0, None)),  # done
        (12, (2, 0, None)),
    ],
)
def test_a_state_says_where_the_run_is(position: int, expected: tuple[int, int, int | None]) -> None:
    state = to_state(PLAN, position)
    assert (state["epoch"], state["batch"], state["validation"]) == expected
    assert from_state(PLAN, state) == (position, frozenset())


def test_batches_handed_out_early_are_kept() -> None:
    state = json.loads(json.dumps(to_state(PLAN, 4, {9, 6, 7})))
    assert state["ahead"] == [2, 3, 5]
    assert from_state(PLAN, state) == (4, frozenset({6, 7, 9}))
    with pytest.raises(ValueError, match=r"none ahead below it, got 4 and \[3\]"):
        to_state(PLAN, 4, [3])


def test_the_end_of_a_run_may_be_moved() -> None:
    state = to_state(Plan([GROUP], end=("epoch", 1)), 4)
    assert from_state(Plan([GROUP], end=("epoch", 9)), state) == (4, frozenset())


def test_a_state_is_small() -> None:
    group = GroupPlan(10**11, 1024, 2**64 - 1, shuffle_first=False, shuffle_later="batchwise", remainder="short")
    groups = [replace(group, weight=65535 / (i + 2)) for i in range(10)]
    plan = Plan(groups, validation=ValidationPlan("batch", 10**6, (group,) * 10))
    assert len(json.dumps(to_state(plan, 10**15, range(10**15, 10**15 + 16)))) < 4096


def test_keys_of_others_are_left_alone() -> None:
    assert from_state(PLAN, {**to_state(PLAN, 7), "bad": [1, 2]}) == (7, frozenset())


def test_equal_ratios_are_one_order() -> None:
    state = to_state(Plan([replace(GROUP, weight=0.7), replace(GROUP, weight=0.3)]), 3)
    assert from_state(Plan([replace(GROUP, weight=7), replace(GROUP, weight=3)]), state) == (3, frozenset())


@pytest.mark.parametrize(
    ("plan", "field", "saved", "current"),
    [
        (Plan([replace(GROUP, batch_size=8)], validation=VALIDATION), "training[0].batch_size", 4, 8),
        (Plan([replace(GROUP, length=17)], validation=VALIDATION), "training[0].length", 16, 17),
        (Plan([replace(GROUP, seed=6)], validation=VALIDATION), "training[0].seed", 5, 6),
        (Plan([replace(GROUP, shuffle_first=False)], validation=VALIDATION), "training[0].shuffle_first", True, False),
        (
            Plan([replace(GROUP, shuffle_later="reseed")], validation=VALIDATION),
            "training[0].shuffle_later",
            "itemwise",
            "reseed",
        ),
        (Plan([replace(GROUP, remainder="pad")], validation=VALIDATION), "training[0].remainder", "drop", "pad"),
        (Plan([replace(GROUP, weight=2)], validation=VALIDATION), "training[0].weight", None, "1"),
        (Plan([GROUP, GROUP], validation=VALIDATION), "number of training groups", 1, 2),
        (Plan([GROUP], validation=VALIDATION, interleave=False), "interleave", True, False),
        (Plan([GROUP]), "validation", "present", None),
        (Plan([GROUP], validation=replace(VALIDATION, mode="batch")), "validation.mode", "epoch", "batch"),
        (Plan([GROUP], validation=replace(VALIDATION, interval=2)), "validation.interval", 1, 2),
        (Plan([GROUP], validation=replace(VALIDATION, groups=(GROUP,))), "validation.groups[0].length", 8, 16),
        (
            Plan([GROUP], validation=replace(VALIDATION, groups=(GROUP,) * 2)),
            "number of validation.groups groups",
            1,
            2,
        ),
    ],
)
def test_the_first_difference_is_named(plan: Plan, field: str, saved: object, current: object) -> None:
    with pytest.raises(StateMismatch) as caught:
        from_state(plan, json.loads(json.dumps(to_state(PLAN, 9))))
    assert (caught.value.field, caught.value.saved, caught.value.current) == (field, saved, current)


def test_another_version_of_the_order_is_a_mismatch() -> None:
    state: dict[str, Any] = to_state(PLAN, 9)
    state["fingerprint"]["order"] = 0
    with pytest.raises(StateMismatch) as caught:
        from_state(PLAN, state)
    assert (caught.value.field, caught.value.saved, caught.value.current) == ("order", 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, but this release reads version 1"),
        ({"version": True}, "has version True"),
        ({"version": ...}, "lacks 'version'; it has"),
        ({"epoch": ...}, "lacks 'epoch'"),
        ({"epoch": -1}, "'epoch' must hold integers of at least 0, got -1"),
        ({"epoch": True}, "'epoch' must hold integers of at least 0, got True"),
        ({"epoch": "3"}, "'epoch' must hold integers of at least 0, got '3'"),
        ({"batch": 1.0}, "'batch' must hold integers of at least 0, got 1.0"),
        ({"batch": 4}, "'batch' must be below 4, the batches of an epoch, got 4"),
        ({"validation": ...}, "lacks 'validation'"),
        ({"validation": 0, "batch": 1}, "'validation' is 0, but no validation pass has batch 0 before training step 5"),
        ({"validation": 2, "batch": 0}, "no validation pass has batch 2 before training step 4"),
        ({"validation": 0, "batch": 0, "epoch": 0}, "no validation pass has batch 0 before training step 0"),
        ({"ahead": 3}, "'ahead' must be a list of integers, got 3"),
        ({"ahead": [1, -1]}, "'ahead' must hold integers of at least 0, got -1"),
        ({"fingerprint": None}, "'fingerprint' must be a dict as it was saved, got NoneType"),
        ({"fingerprint": {}}, "fingerprint lacks 'order'"),
    ],
)
def test_what_is_no_state_is_refused(change: dict[str, Any], message: str) -> None:
    state: dict[str, Any] = {**to_state(PLAN, 9), **change}
    state = {name: value for name, value in state.items() if value is not ...}
    with pytest.raises(ValueError, match=message) as caught:
        from_state(PLAN, state)
    assert not isinstance(caught.value, StateMismatch)


def test_something_else_is_no_state() -> None:
    with pytest.raises(ValueError, match="the state must be a dict as it was saved, got list"):
        from_state(PLAN, [])  # pyright: ignore[reportArgumentType]
