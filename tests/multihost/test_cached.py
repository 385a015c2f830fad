"""Two processes that fill one cache, and take the same batches from it, whatever one of them alone cannot read.

Defects that were planted by hand to see the tests find them are listed in `tests/multihost/__init__.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._plan import common_part
from tests.multihost import cached, member
from tests.multihost.ports import reserve

Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each process has written down."""
    folder = tmp_path_factory.mktemp("cached")
    port, address = reserve()
    members = [
        subprocess.Popen(
            [sys.executable, "-m", cached.__name__, address, "2", str(number), folder],
            cwd=Path(__file__).parents[2], env=os.environ | member.ENVIRONMENT | {"NPROC": "8"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=90)[0] for process in members]
    finally:
        for process in members:
            process.kill()
            process.communicate()
        port.close()
    for process, output in zip(members, outputs, strict=True):
        assert process.returncode == 0, output
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


def both(told: Told, case: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The batches of both processes, which have as many, and hold the same in the same order."""
    runs = [process[case] for process in told]
    pairs = list(zip(runs[0]["batches"], runs[1]["batches"], strict=True))
    for mine, theirs in pairs:
        for field in ("number", "uncached", "global", "sum"):
            assert mine[field] == theirs[field], f"{case}: they are out of step in {field}"
        total = 0
        for batch in (mine, theirs):
            items = dict(zip(batch["rows"], batch["indices"], strict=True))
            assert batch["items"] == batch["indices"], "what was kept with each item"
            for name, shards in batch["arrays"].items():
                for (begin, end), values in shards:
                    wanted = content(name, [items[row] for row in range(begin, end)])
                    np.testing.assert_array_equal(np.array(values), wanted)
                    total += float(wanted.sum())
        if case != "both":  # where an array is replicated
            assert mine["sum"] == total, "as the devices of both see it together"
    assert common_part(runs[0]["state"]) == common_part(runs[1]["state"])
    return pairs


def content(name: str, items: list[int]) -> Any:
    numbers = np.array(items)
    match name:
        case "x":
            return numbers[:, None, None] * 64 + np.arange(64).reshape(4, 16)
        case "z":
            return (numbers[:, None] * 64 + np.arange(6)) * 2 + 1
        case "w":
            return numbers * 3
        case _:
            return numbers


def uncached(told: Told, case: str) -> list[int]:
    """The numbers of batches that were not from the cache."""
    return [mine["number"] for mine, _ in both(told, case) if mine["uncached"]]


def with_item(told: Told, case: str, item: int) -> list[int]:
    return [mine["number"] for mine, _ in both(told, case) if item in mine["global"]]


def counts(told: Told, case: str, name: str) -> list[Any]:
    return [process[case][name] for process in told]


def test_each_writes_its_rows_and_the_next_epoch_is_read(told: Told) -> None:
    later = uncached(told, "filled")[6:]
    assert uncached(told, "filled")[:6] == list(range(6))
    assert set(later) <= {104, 105}, "planned before these two were written"
    assert sum(counts(told, "filled", "written")) == cached.ITEMS, "each item once, padding not at all"
    assert min(counts(told, "filled", "written")) == 20, "rows are written where they are"
    assert all(24 <= misses <= 24 + 4 * len(later) for misses in counts(told, "filled", "misses"))


@pytest.mark.parametrize("case", ["half", "rest", "only"])
def test_what_is_there_is_read_by_all(told: Told, case: str) -> None:
    pairs = both(told, case)
    assert uncached(told, case) == [] and counts(told, case, "misses") == counts(told, case, "dropped") == [0, 0]
    assert len(pairs) == (6 if case == "only" else 3)
    assert counts(told, case, "hits") == [4 * len(pairs)] * 2, "only the rows of a process"


def test_a_run_goes_on_exactly_where_it_was(told: Told) -> None:
    whole = both(told, "only")
    assert [mine["global"] for mine, _ in both(told, "half") + both(told, "rest")] == [m["global"] for m, _ in whole]


def test_what_the_loader_function_fills_is_cached_by_each(told: Told) -> None:
    assert uncached(told, "direct") == [] and len(both(told, "direct")) == 12
    assert sum(counts(told, "direct", "written")) == cached.ITEMS


def test_an_entry_that_one_cannot_read_is_replaced_there_and_loaded_by_all_later(told: Told) -> None:
    first, later = with_item(told, "damaged", 3)
    assert uncached(told, "damaged") == [later] and later >= 100 > first
    assert counts(told, "damaged", "bad") == [[], [3]] and counts(told, "damaged", "damaged") == [0, 1]
    assert counts(told, "damaged", "written") == [0, 1], "mended by who has its row"
    for mine, theirs in both(told, "damaged"):
        assert not any(mine["replaced"]) and sum(theirs["replaced"]) == (theirs["number"] == first)
        at = [theirs["global"][row] for row in theirs["rows"]]
        assert theirs["replaced"] == [got != wanted for got, wanted in zip(theirs["indices"], at, strict=True)]


def test_what_one_does_not_see_is_missing_for_all(told: Told) -> None:
    assert uncached(told, "lost") == list(range(5)), "the last batch has four items, and padding"
    assert counts(told, "lost", "misses") == [0, 20], "none of its own"
    assert all(any("directory has to be one" in line for line in lines) for lines in counts(told, "lost", "troubles"))
    assert counts(told, "lost, only", "dropped") == [5, 5]
    assert uncached(told, "lost, only") == [] and len(both(told, "lost, only")) == 1


def test_a_row_that_others_have_too_ends_the_run_of_all_at_the_same_batch(told: Told) -> None:
    due = with_item(told, "only", 3)[0]
    assert [mine["number"] for mine, _ in both(told, "both")] == list(range(due))
    for text in counts(told, "both", "error"):
        assert "items 3 " in text and "hydrax-gpu cache repair" in text
