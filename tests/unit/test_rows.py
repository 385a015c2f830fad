"""Loaders that load whole batches in one call."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import BatchTimeoutError, DataGroup, Dataloader, ErrorPolicy, LoaderError
from hydrax_gpu._exec.protocol import RowsLoader
from tests import loaders, rows
from tests.small import group, loader

SEEDED = {"x": ((3,), np.uint8, np.float32), "seed": ((2,), np.uint32, np.uint32)}
EXECUTORS = ["inline", "thread", "process"]


def seeded(size: int = 8, items: int = 40) -> DataGroup[int]:
    return DataGroup(size, range(items), loader_arrays=SEEDED, seed=3, shuffle_first=True)


def contents(it: Dataloader[Any]) -> list[Any]:
    found: list[Any] = []
    with it:
        for batch in it:
            found.append(
                (
                    *(list(batch.indices), np.asarray(batch.arrays["x"]).tolist()),
                    *(np.asarray(batch.arrays["seed"]).tolist(), list(batch.additional["seed"])),
                )
            )
            del batch
    return found


@pytest.mark.parametrize("executor", EXECUTORS)
def test_whole_batches_come_to_what_single_items_come_to(executor: Any) -> None:
    options = {"end_at": ("epoch", 2), "executor": executor, "loader_count": 2, "on_error": "raise"}
    assert contents(loader(rows.Rows(), seeded(), **options)) == contents(loader(loaders.record, seeded(), **options))


def test_one_worker_gets_whole_batches() -> None:
    for executor in EXECUTORS:
        with loader(rows.Rows(), seeded(), executor=executor, on_error="raise") as it:
            for batch in it:
                assert set(batch.additional["rows"]) == {8}
                del batch


def test_a_loader_of_rows_fits_its_protocol_and_need_not_be_callable() -> None:
    load: RowsLoader = rows.QuietRows()
    assert not callable(load)
    with loader(load, executor="thread", on_error="raise") as it:
        assert [batch.arrays["y"].tolist() for batch in it] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(TypeError, match="loader_func: got"):
        loader(object())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("how", ["bad", "raising"])
def test_a_bad_row_is_told_by_its_item_and_the_others_are_kept(executor: Any, how: Any) -> None:
    load = rows.Rows(**{how: (11, 13)})
    it = loader(load, DataGroup(8, range(40), loader_arrays=SEEDED), executor=executor, on_error="replace")
    with it:
        batches = 0
        for batch in it:
            x = np.asarray(batch.arrays["x"])[:, 0].tolist()
            assert x == list(batch.indices) == list(batch.additional["item"])
            assert batch.replaced.tolist() == [i in (3, 5) and batches == 1 for i in range(8)]
            batches += 1
            del batch
        report = it.report()
    assert batches == 5 and report.bad.items() == [11, 13]
    expected = "item 11 is broken" if how == "bad" else "something in a batch with 11 is broken"
    assert report.bad[0].error == f"ValueError: {expected}"
    if how == "raising":
        assert "in load_rows" in report.bad[0].traceback and "tests/rows.py" in report.bad[0].traceback
        assert "_exec" not in report.bad[0].traceback, "it begins with the user's function"


def test_a_bad_row_can_end_the_run() -> None:
    with (
        pytest.raises(LoaderError, match=r"item 13 .*item 13 is broken") as caught,
        loader(rows.Rows(bad=[13]), seeded(), on_error="raise", end_at=("epoch", 1)) as it,
    ):
        for batch in it:
            del batch
    assert caught.value.item_index == 13 and isinstance(caught.value.__cause__, ValueError)


def test_only_failed_rows_are_tried_again() -> None:
    load = rows.RowsAtLast(2, 1, 3)
    policy = ErrorPolicy(mode="raise", retries=2, backoff=0)
    with loader(load, on_error=policy) as it:
        assert [batch.arrays["y"].tolist() for batch in it] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert load.calls == [[0, 1, 2, 3], [1, 3], [1, 3], [4, 5, 6, 7]]
    load = rows.RowsAtLast(4, 2)
    with loader(load, on_error=ErrorPolicy(retries=2, backoff=0)) as it:
        assert [batch.arrays["y"].tolist() for batch in it] == [[4, 5, 6, 7]]
        assert it.report().bad[0].error == "ConnectionError: item 2 is not there yet (tried 3 times)"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (7, "load_rows returned a int, wanted None, or a list with one outcome a row"),
        ([None] * 3, "load_rows returned 3 outcomes for 4 rows"),
        ([None, {"a": 1}, 5, None], "load_rows returned a int as the outcome of a row"),
    ],
)
def test_what_a_loader_of_rows_may_not_return_is_said(result: Any, text: str) -> None:
    with pytest.raises(LoaderError) as caught, loader(rows.Returns(result), on_error="raise") as it:
        next(it)
    assert text in str(caught.value)
    assert caught.value.item_index == (2 if isinstance(result, list) and len(result) == 4 else 0)


def test_one_item_over_which_workers_die_is_found_among_those_of_its_call() -> None:
    it = loader(
        rows.Rows(lethal=[13]), DataGroup(8, range(40), loader_arrays=SEEDED), executor="process",
        on_error=ErrorPolicy(mode="replace", restarts=1),
    )  # fmt: skip
    with it:
        found = []
        for batch in it:
            assert np.asarray(batch.arrays["x"])[:, 0].tolist() == list(batch.indices)
            found += [i for i, new in zip(batch.indices, batch.replaced, strict=True) if not new]
            del batch
        report = it.report()
    assert found == [i for i in range(40) if i != 13]
    assert [(bad.item, bad.lethal) for bad in report.bad] == [(13, True)]
    assert [death.suspect for death in report.worker_deaths] == [None, 13, 13, 13]
    assert set(report.worker_deaths[0].items) >= set(range(8, 16))


def test_a_call_that_hangs_is_named_with_all_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydrax_gpu._exec.procs._GRACE_SECONDS", 0.05)
    it = loader(rows.HangingRows(9), group(range(40)), executor="process", timeout_sec=1)
    with it, pytest.raises(BatchTimeoutError) as caught:
        for batch in it:
            del batch
    assert caught.value.items == (8, 9, 10, 11)
    assert "is at items 8, 9, 10, 11 (loaded together) of training group 0, which it took up" in str(caught.value)
    assert "in load_rows" in caught.value.stacks[0]


@pytest.mark.parametrize(("executor", "count"), [("inline", 1), ("thread", 1), ("thread", 2), ("process", 2)])
def test_a_worker_knows_how_many_threads_are_its_share(executor: Any, count: int) -> None:
    processors = len(os.sched_getaffinity(0))
    it = loader(rows.ThreadsTold(), group(), executor=executor, loader_count=count, on_error="raise")
    with it:
        assert set(next(it).additional["threads"]) == {max(1, processors // count)}


def test_validation_has_no_seeds_and_a_short_batch_is_short() -> None:
    training = DataGroup(8, range(20), loader_arrays=SEEDED, remainder="short")
    validation = ("epoch", 1, DataGroup(4, range(8), loader_arrays=SEEDED))
    with loader(rows.Rows(), training, validation=validation, on_error="raise") as it:
        seen = [(len(batch.indices), set(map(type, batch.additional["seed"]))) for batch in it]
    assert seen == [(8, {int}), (8, {int}), (4, {int}), (4, {type(None)}), (4, {type(None)})]
