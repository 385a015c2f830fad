"""`ErrorPolicy`, and what is remembered of bad items."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu import BadItem, BadItems, ErrorPolicy
from hydrax_gpu.policy import BadLedger, bad_from_state

counts = st.integers(0, 2**62)
bad_items = st.builds(
    BadItem,
    item=counts,
    group=st.integers(0, 3),
    validation=st.booleans(),
    epoch=counts,
    error=st.text(),
    traceback=st.text(),
    count=counts,
    lethal=st.booleans(),
)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"mode": "ignore"}, ValueError, "on_error mode: got 'ignore', wanted one of 'drop', 'replace', 'raise'"),
        ({"retries": -1}, ValueError, "on_error retries: got -1, wanted at least 0"),
        ({"retries": 1.5}, TypeError, "on_error retries: got 1.5, wanted an integer"),
        ({"restarts": -1}, ValueError, "on_error restarts: got -1, wanted at least 0"),
        ({"backoff": -0.1}, ValueError, "on_error backoff: got -0.1, wanted seconds, at least 0 and finite"),
        ({"backoff": float("nan")}, ValueError, "on_error backoff: got nan, wanted seconds, at least 0 and finite"),
        ({"backoff": "1"}, TypeError, "on_error backoff: got '1', wanted seconds"),
        ({"budget": 1.5}, ValueError, "on_error budget: got 1.5, wanted a count (an int) or a fraction from 0 to 1"),
        ({"budget": -1}, ValueError, "on_error budget: got -1, wanted at least 0"),
        ({"budget": True}, TypeError, "on_error budget: got True, wanted an integer"),
        ({"skip": [3]}, TypeError, "bad items: got 3, wanted BadItem(item=index, group=..., validation=...)"),
    ],
)
def test_a_policy_that_is_none_is_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        ErrorPolicy(**arguments)
    assert str(caught.value) == text


def test_a_mode_stands_for_a_policy() -> None:
    assert ErrorPolicy.of("replace") == ErrorPolicy(mode="replace")
    with pytest.raises(TypeError, match="on_error: got 3, wanted an ErrorPolicy, or one of 'drop', 'replace', 'raise'"):
        ErrorPolicy.of(3)


def test_a_budget_is_a_count_or_a_fraction() -> None:
    assert ErrorPolicy().limit(1000) is None
    assert ErrorPolicy(budget=7).limit(1000) == 7
    assert ErrorPolicy(budget=0.01).limit(1000) == 10
    assert ErrorPolicy(budget=0.0).limit(1000) == ErrorPolicy(budget=0).limit(1000) == 0
    assert ErrorPolicy(budget=1).limit(1000) == 1, "an int is a count"


@given(st.lists(bad_items, max_size=5))
def test_bad_items_survive_json(items: list[BadItem]) -> None:
    bad = BadItems(items)
    assert BadItems.from_json(json.loads(json.dumps(bad.to_json()))) == bad
    assert pickle.loads(pickle.dumps(bad)) == bad
    assert len({item.key for item in bad}) == len(bad) <= len(items)


def test_a_file_of_bad_items_is_a_skip_list(tmp_path: Path) -> None:
    bad = BadItems([BadItem(item=3, error="ValueError: no", count=2), BadItem(item=1, group=1, validation=True)])
    path = tmp_path / "bad.json"
    path.write_text("an older file")
    bad.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.json"], "nothing else is left of the writing"
    assert BadItems.load(path) == bad == ErrorPolicy(skip=path).skipped == ErrorPolicy(skip=bad).skipped
    assert bad.items() == [3] and bad.items(1, validation=True) == [1] and bad.items(1) == []
    assert bad[0].item == 3 and len(bad) == 2 and "no" in repr(bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a list of bad items: got [], wanted a dict with version 1"),
        ('{"version": 2, "bad": []}', "wanted a dict with version 1"),
        ('{"version": 1}', "has no list under 'bad', but None"),
        ('{"version": 1, "bad": [{"group": 1}]}', "a dict with its index under 'item', got {'group': 1}"),
        ('{"version": 1, "bad": [7]}', "a dict with its index under 'item', got 7"),
        ('{"version": 1, "bad": [{"item": -1}]}', "'item' of a bad item must be an integer of at least 0, got -1"),
        ('{"version": 1, "bad": [{"item": 1, "lethal": 1}]}', "'lethal' of a bad item must be true or false, got 1"),
        ('{"version": 1, "bad": [{"item": 1, "error": 1}]}', "'error' of a bad item must be a string, got 1"),
        ('{"version": 1, "bad": [{"item": 1, "why": 1}]}', "got why"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        BadItems.load(path)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)


def test_an_item_that_fails_again_is_counted_and_keeps_its_first_error() -> None:
    ledger = BadLedger([BadItem(item=9)])
    assert ledger.add(BadItem(item=3, error="first", epoch=1, count=1))
    assert not ledger.add(BadItem(item=3, error="second", epoch=2, count=1, lethal=True))
    assert ledger.add(BadItem(item=9, error="it was only known", epoch=4, count=1)), "now it is found"
    assert list(ledger.snapshot()) == [
        BadItem(item=9, error="it was only known", epoch=4, count=1),
        BadItem(item=3, error="first", epoch=1, count=2, lethal=True),
    ]


def test_tracebacks_of_a_flood_of_bad_items_are_not_kept() -> None:
    ledger = BadLedger()
    for item in range(1200):
        ledger.add(BadItem(item=item, error="the same", traceback="long", count=1))
    kept = [bad for bad in ledger.snapshot() if bad.traceback]
    assert len(ledger) == 1200 and len(kept) == 1000


@given(st.lists(bad_items, max_size=20))
def test_a_state_keeps_bad_items_but_for_long_texts(items: list[BadItem]) -> None:
    ledger = BadLedger(BadItems(items))
    back = bad_from_state(json.loads(json.dumps(ledger.to_state())))
    for before, after in zip(ledger.snapshot(), back, strict=True):
        assert (after.key, after.epoch, after.count, after.lethal) == (
            before.key, before.epoch, before.count, before.lethal
        )  # fmt: skip
        assert before.error.startswith(after.error)
    assert [bad.error for bad in back[16:]] == [""] * len(back[16:])


def test_fifty_bad_items_leave_the_state_small() -> None:
    ledger = BadLedger(BadItem(item=10**6 + i, error="x" * 500, epoch=12, count=3) for i in range(50))
    assert len(json.dumps(ledger.to_state())) < 3400, "the rest of a state has some 500 bytes"


@pytest.mark.parametrize("damaged", ["x", 3, [[1, 2, 3]], [[0, 0, -1, 0, 0, 0, ""]], [[0, 0, 1, 0, 0, 0, 5]], [7]])
def test_damage_in_a_state_is_said(damaged: Any) -> None:
    with pytest.raises(ValueError, match="the state's 'bad' must"):
        bad_from_state(damaged)
