"""Two processes with two devices each: what they have together, what each has alone, and that they stay in step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._plan import common_part, merge_states
from tests.multihost import member
from tests.multihost.ports import reserve
from tests.small import rows

PROCESSES = 2


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process has written down."""
    folder = tmp_path_factory.mktemp("members")
    port, address = reserve()
    members = [
        subprocess.Popen(
            [sys.executable, "-m", member.__name__, address, str(PROCESSES), str(number), folder / str(number)],
            cwd=Path(__file__).parents[2], env=os.environ | member.ENVIRONMENT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for number in range(PROCESSES)
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
    return [json.loads((folder / f"{number}").read_text()) for number in range(PROCESSES)]


def whole(batch: dict[str, Any], name: str) -> Any:
    """What an array has to hold, by the planned indices; validation items are numbers, too."""
    items = np.array(batch["global"])
    return items if name == "y" else items[:, None, None] * 64 + np.arange(64).reshape(4, 16)


NAMES = ["batch", "batch × model", "model over processes", "replicated", "one per array", "rows with gaps", "reversed"]
HALVES = {"batch", "batch × model", "rows with gaps", "reversed"}


@pytest.mark.parametrize("name", NAMES)
def test_together_they_have_the_global_batch(told: list[dict[str, Any]], name: str) -> None:
    runs = [process["each sharding"][name]["batches"] for process in told]
    assert len(runs[0]) == len(runs[1]) == 8 + 2 * 2
    for batches in zip(*runs, strict=True):
        for field in ("global", "training", "shapes", "sum"):
            assert batches[0][field] == batches[1][field]
        assert batches[0]["sum"] == sum(batches[0]["global"]), "as their devices see it together"
        for array in ("x", "y"):
            seen = np.full(batches[0]["shapes"][array], -1)
            for batch in batches:
                for index, values in batch["shards"][array]:
                    part = tuple(slice(*each) for each in index)
                    np.testing.assert_array_equal(np.array(values), whole(batch, array)[part])
                    seen[part] = values
            np.testing.assert_array_equal(seen, whole(batches[0], array), "all of it is somewhere")


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_the_rows_that_its_devices_need_and_no_others(told: list[dict[str, Any]], name: str) -> None:
    runs = [process["each sharding"][name]["batches"] for process in told]
    for batches in zip(*runs, strict=True):
        mine, theirs = (set(batch["rows"]) for batch in batches)
        assert mine | theirs == set(range(8))
        assert mine & theirs == (set() if name in HALVES else set(range(8)))
        for batch in batches:
            needed = {
                row
                for parts in batch["shards"].values()
                for index, values in parts
                for row in range(index[0][0] or 0, (index[0][0] or 0) + len(values))
            }
            assert needed == set(batch["rows"])
            assert batch["indices"] == [batch["global"][row] for row in batch["rows"]]
            assert batch["items"] == batch["data"] == batch["indices"]
            assert sum(batch["valid"]) == sum(row < len(set(batch["global"])) for row in batch["rows"])
    if name == "rows with gaps":
        assert runs[0][0]["rows"] == [0, 1, 4, 5]
    if name == "reversed":
        assert runs[0][0]["rows"] == [4, 5, 6, 7]


def test_batches_and_seeds_are_those_of_one_process(told: list[dict[str, Any]]) -> None:
    alone = member.run(
        member.load(
            None, member.group(29, "pad"), validation=("batch", 3, member.group(16)),
        )
    )["batches"]  # fmt: skip
    for process in told:
        for run in process["each sharding"].values():
            assert [batch["global"] for batch in run["batches"]] == [batch["indices"] for batch in alone]
            for batch, one in zip(run["batches"], alone, strict=True):
                seeds = None if one["seeds"] is None else [one["seeds"][row] for row in batch["rows"]]
                assert batch["seeds"] == seeds


@pytest.mark.parametrize(("case", "count"), [("99 drop", 12), ("101 drop", 12), ("99 pad", 13), ("101 pad", 13)])
def test_whatever_the_size_they_have_as_many_batches(told: list[dict[str, Any]], case: str, count: int) -> None:
    runs = [process["each size"][case] for process in told]
    assert [len(batches) for batches in runs] == [count, count]
    size, remainder = case.split()
    valid = sum(sum(batch["valid"]) for batches in runs for batch in batches)
    assert valid == (int(size) if remainder == "pad" else 96), "each item is one process's"


@pytest.mark.parametrize("case", ["default", "threads", "resumed"])
def test_a_bad_item_is_replaced_and_nobody_gets_out_of_step(told: list[dict[str, Any]], case: str) -> None:
    runs = [process["bad items"][case] for process in told]
    epochs = 1 if case == "resumed" else 2
    assert [len(run["batches"]) for run in runs] == [10 * epochs] * 2
    assert all(run["dropped"] == 0 for run in runs)
    assert all(any("no batch is dropped" in note for note in run["notes"]) for run in runs)
    for batches in zip(*(run["batches"] for run in runs), strict=True):
        assert batches[0]["global"] == batches[1]["global"] and batches[0]["sum"] == batches[1]["sum"]
        for batch in batches:
            bad = [batch["global"][row] in member.BAD for row in batch["rows"]]
            assert batch["replaced"] == bad, "in those rows, and in no other"
            assert not set(batch["indices"]) & set(member.BAD)
        assert batches[0]["sum"] == sum(item for batch in batches for item in batch["indices"])
    assert sorted(map(int, {**runs[0]["bad"], **runs[1]["bad"]})) == list(member.BAD)


def test_skipped_items_are_replaced_without_being_tried(told: list[dict[str, Any]]) -> None:
    for run in (process["bad items"]["skip list"] for process in told):
        assert len(run["batches"]) == 20 and run["dropped"] == 0
        for batch in run["batches"]:
            assert batch["replaced"] == [batch["global"][row] in member.BAD[:3] for row in batch["rows"]]


def test_their_states_are_equal_but_for_what_each_has_found(told: list[dict[str, Any]]) -> None:
    states = [process["bad items"]["default"]["state"] for process in told]
    assert common_part(states[0]) == common_part(states[1]) != states[0]
    assert states[0]["bad"] == [] and states[0]["process"] != states[1]["process"]
    merged = merge_states(states)
    assert sorted(entry[2] for entry in merged["bad"]) == list(member.BAD)
    assert counts(merged) == sum((Counter(process["bad items"]["default"]["bad"]) for process in told), Counter())
    # Each went on with its own state, and what had been found before is counted once.
    on = [process["bad items"]["resumed"] for process in told]
    assert counts(merge_states([run["state"] for run in on])) == sum((Counter(run["bad"]) for run in on), Counter())


def counts(state: dict[str, Any]) -> Counter[str]:
    return Counter({str(entry[2]): entry[4] for entry in state["bad"]})


def test_one_process_goes_on_where_two_have_stopped(told: list[dict[str, Any]]) -> None:
    state = merge_states([process["bad items"]["default"]["state"] for process in told])
    alone = member.load(None, member.group(80, "pad"), start_at=state, end_at=("epoch", 3))
    on = [process["bad items"]["resumed"]["batches"] for process in told]
    assert rows(alone) == [batch["global"] for batch in on[0]] == [batch["global"] for batch in on[1]]


def test_what_would_desynchronise_them_is_refused(told: list[dict[str, Any]]) -> None:
    for number, process in enumerate(told):
        refused = process["refused"]
        assert "remainder='short'" in refused["short"] and "'pad'" in refused["short"]
        assert "deterministic=False" in refused["out of order"]
        assert f"no device of this process (number {number} of 2)" in refused["of others"]
