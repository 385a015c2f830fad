"""What processes agree on: the same set on all of them, of nothing but what each of them has, at every batch."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._engine.agreeing import Agreement
from hydrax_gpu._plan import agreed, block_of, owned_rows
from hydrax_gpu._plan.plan import BatchPlan
from hydrax_gpu.errors import CacheError


def bits_of(length: int, items: Collection[int]) -> agreed.Bits:
    there = np.zeros(length, np.bool_)
    there[list(items)] = True
    return agreed.seen(length, lambda numbers: there[numbers])


def items_of(bits: agreed.Bits, length: int) -> set[int]:
    return {item for item in range(length) if not agreed.missing(bits, [item])}


@st.composite
def views(draw: st.DrawFn) -> tuple[int, list[set[int]], list[set[int]], set[int]]:
    """Length; what each process sees, and knows to be damaged, which it does not see; what was agreed on before."""
    length = draw(st.integers(1, 40))
    items = st.sets(st.integers(0, length - 1))
    count = draw(st.integers(1, 4))
    damaged = [draw(items) for _ in range(count)]
    seen = [draw(items) - bad for bad in damaged]
    return length, seen, damaged, draw(items)


@given(views())
def test_all_come_to_what_each_of_them_sees_and_nobody_holds_to_be_damaged(
    given_views: tuple[int, list[set[int]], list[set[int]], set[int]],
) -> None:
    length, seen, damaged, before_items = given_views
    topic, before = {"position": 7}, bits_of(length, before_items)
    proposed = bits_of(length, seen[0])
    message = agreed.propose(topic, proposed, before)
    answers = [agreed.Answer(b"", tuple(sorted(damaged[0])))]
    understood = []
    for view, bad in zip(seen[1:], damaged[1:], strict=True):
        answer, theirs = agreed.answer(topic, message, bits_of(length, view), before, bad)
        understood.append(theirs)
        answers.append(agreed.Answer.of(answer.to_bytes()))
    outcome = agreed.Answer.of(agreed.verdict(answers, length).to_bytes())
    wanted = set.intersection(*seen) - set.union(*damaged)
    for each in [proposed, *understood]:
        result = agreed.conclude(each, outcome)
        assert items_of(result, length) == wanted
        assert agreed.count(result) == len(wanted)
    assert set(outcome.damaged) == set.union(*damaged)


def test_sets_that_have_not_changed_take_no_room() -> None:
    half = bits_of(100_000, range(0, 100_000, 2))
    assert len(agreed.propose({}, half, half)) < 8
    answer, proposed = agreed.answer({}, agreed.propose({}, half, half), half, half, ())
    assert answer == agreed.NOTHING and (proposed == half).all()


@given(st.integers(1, 3_000_000), st.data())
def test_sets_are_asked_for_by_blocks_of_any_length(length: int, data: st.DataObject) -> None:
    items = data.draw(st.sets(st.integers(0, length - 1), max_size=8))
    bits = bits_of(length, items)
    assert len(bits) == (length + 7) // 8 and agreed.count(bits) == len(items)
    asked = data.draw(st.lists(st.integers(0, length - 1), max_size=8))
    assert agreed.missing(bits, asked) == sum(item not in items for item in asked)


# Who writes what.


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.data())
def test_each_row_is_written_by_one_that_has_all_of_it(hosts: int, rows: int, models: int, data: st.DataObject) -> None:
    batch, count = hosts * rows, hosts * models
    # processes (host, model): "cut" has other rows on each host, "all" all rows everywhere
    cut = {block_of(batch, h, hosts): [h * models + m for m in range(models)] for h in range(hosts)}
    whole = {range(batch): sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=count - 1)))}
    arrays = {"cut": cut} if data.draw(st.booleans()) else {"all": whole, "cut": cut}
    try:
        owned = [owned_rows(arrays, batch, process) for process in range(count)]
    except ValueError as error:
        assert "no process has whole rows" in str(error)
        assert any(not set(each) & set(whole[range(batch)]) for each in cut.values())
        return
    assert sorted(row for each in owned for row in each) == list(range(batch))
    for process, mine in enumerate(owned):
        for row in mine:
            assert all(process in who for holders in arrays.values() for part, who in holders.items() if row in part)


def test_rows_that_several_have_are_written_in_turns() -> None:
    assert owned_rows({"w": {range(6): [0, 2]}}, 6, 0) == [0, 2, 4]
    with pytest.raises(ValueError, match="array 'w'"):
        owned_rows({"z": {range(4): [0, 1]}, "w": {range(4): []}}, 4, 0)


# The rounds.


class Board:
    """The key-value store of a job whose processes are threads."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()

    def put(self, key: str, value: bytes) -> None:
        with self.changed:
            assert key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def get(self, key: str, seconds: float) -> bytes | None:
        with self.changed:
            self.changed.wait_for(lambda: key in self.values, seconds)
            return self.values.get(key)

    def delete(self, prefix: str) -> None:
        with self.changed:
            for key in [key for key in self.values if key.startswith(prefix)]:
                del self.values[key]


class Shelf:
    """A cache of twelve items, of which a process sees some."""

    length = 12
    by_pass = False

    def __init__(self, items: set[int], bad: set[int]) -> None:
        self.items, self.bad, self.heard, self.apart = items, bad, set[int](), False
        self.topic = {"data": "same"}

    def seen(self, group_pass: int) -> agreed.Bits:
        return bits_of(self.length, self.items)

    def damaged(self, group_pass: int) -> set[int]:
        return self.bad

    def told(self, group_pass: int, items: Collection[int], *, unshared: bool) -> None:
        self.heard |= set(items)
        self.apart |= unshared


def plan(position: int, group_pass: int) -> BatchPlan:
    return BatchPlan(position, False, 0, 0, group_pass, position, position, 2, 2, [0, 1], [0, 0], 0, group_pass)


class Member:
    """One process of a job."""

    def __init__(self, board: Board, number: int, shelf: Shelf, depth: int = 1) -> None:
        self.shelf = shelf
        self.settled = threading.Semaphore(0)
        self.error: Exception | None = None
        self.agreement = Agreement(board, "loader", number, [0, 1], depth, self._settle)
        self.agreement.start()

    def _settle(self, error: Exception | None) -> None:
        self.error = error
        self.settled.release()

    def ask(self, position: int, group_pass: int) -> set[int] | None:
        bits = self.agreement.of(0, self.shelf, plan(position, group_pass))
        return None if bits is None else items_of(bits, 12)


@pytest.fixture
def pair() -> Any:
    board = Board()
    made = [Member(board, 0, Shelf({1, 2, 3, 4}, set())), Member(board, 1, Shelf({2, 3, 5}, {4}))]
    yield board, *made
    for member in made:
        member.agreement.close()


def both(first: Member, second: Member, position: int, group_pass: int) -> Any:
    """What both have for a batch, after they have agreed if they must."""
    answers = [member.ask(position, group_pass) for member in (first, second)]
    assert answers[0] == answers[1] or None in answers
    for member, got in zip((first, second), answers, strict=True):
        if got is None:
            assert member.settled.acquire(timeout=10) and member.error is None
    answers = [member.ask(position, group_pass) for member in (first, second)]
    assert answers[0] == answers[1]
    return answers[0]


def test_what_was_agreed_on_holds_for_the_pass_whatever_is_seen_later(pair: Any) -> None:
    board, first, second = pair
    assert both(first, second, 0, 0) == {2, 3}
    assert first.shelf.heard == second.shelf.heard == {4}, "damaged, as one of them has found"
    assert first.shelf.apart and second.shelf.apart, "the first alone has 1"
    for member in (first, second):
        member.shelf.items, member.shelf.bad = set(range(12)) - {9}, set()
    assert [both(first, second, position, 0) for position in range(1, 6)] == [{2, 3}] * 5
    assert both(first, second, 6, 1) == set(range(12)) - {9}
    assert both(first, second, 5, 0) == {2, 3}, "of a batch that has waited"
    assert all(key.startswith("loader/1/") for key in board.values), "what all have read is gone"


def test_what_was_written_late_counts_after_some_batches_of_the_next_pass(pair: Any) -> None:
    _, first, second = pair
    both(first, second, 0, 0)
    second.shelf.bad.clear()
    both(first, second, 1, 1)
    first.shelf.items = second.shelf.items = set(range(12))
    assert [both(first, second, position, 1) for position in (2, 3)] == [{2, 3}] * 2
    assert both(first, second, 4, 1) == set(range(12)), "three times depth later"
    assert first.agreement.rounds == 3
    for position in range(5, 12):
        both(first, second, position, 1)
    for position in range(12, 20):
        both(first, second, position, 2)
    assert first.agreement.rounds == second.agreement.rounds == 4, "once it is complete, only when a pass begins"


def test_a_process_waits_and_can_be_closed_meanwhile(pair: Any) -> None:
    _, first, second = pair
    assert first.ask(0, 0) is None and first.ask(1, 0) is None
    assert not first.settled.acquire(blocking=False)
    first.agreement.close()
    second.agreement.close()
    assert first.error is None


@pytest.mark.parametrize("how", ["position", "data"])
def test_processes_that_are_not_at_the_same_place_are_told(pair: Any, how: str) -> None:
    _, first, second = pair
    if how == "data":
        second.shelf.topic = {"data": "another"}
    first.ask(0, 0)
    second.ask(1 if how == "position" else 0, 0)
    assert second.settled.acquire(timeout=10)
    assert isinstance(second.error, CacheError) and "same loaders in the same order" in str(second.error)
    assert ("position is 0 there and 1 here" if how == "position" else "another") in str(second.error)


def test_a_runtime_that_is_gone_is_an_error(pair: Any) -> None:
    board, first, _ = pair

    def gone(key: str, value: bytes) -> None:
        raise OSError("no coordinator")

    board.put = gone
    first.ask(0, 0)
    assert first.settled.acquire(timeout=10)
    assert isinstance(first.error, CacheError) and "no coordinator" in str(first.error)
