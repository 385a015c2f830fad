"""Bad items and lost workers, as the loader's user sees them."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import (
    BadItem,
    Batch,
    DataGroup,
    Dataloader,
    ErrorPolicy,
    LoaderError,
    TooManyBadItems,
    WorkerDied,
    WorkerStartError,
)
from hydrax_gpu._engine import running_streams
from hydrax_gpu._engine.inbox import Waiter
from hydrax_gpu._engine.thread import EngineThread
from tests import loaders
from tests.small import group, loader

EXECUTORS = pytest.mark.parametrize("executor", ["process", "thread", "inline"])

Row = tuple[list[int], list[int], list[bool]]


def run(it: Dataloader[Any]) -> list[Row]:
    """Items, what the arrays hold, and which rows are replaced, for every batch."""
    found: list[Row] = []
    with it:
        for batch in it:
            values = batch.arrays["y"].tolist()
            found.append((list(batch.indices), values, batch.replaced.tolist()))
            del batch
    return found


def bad(it: Dataloader[Any]) -> list[tuple[int, int]]:
    return [(item.item, item.count) for item in it.report().bad]


# Policies.


@EXECUTORS
def test_a_batch_with_a_bad_item_is_left_out_by_default(executor: Any, caplog: pytest.LogCaptureFixture) -> None:
    it = loader(loaders.FailsFor(6), group(range(20)), executor=executor, loader_count=2, end_at=("epoch", 2))
    rows = run(it)
    assert len(rows) == 8 and all(6 not in items for items, _, _ in rows[:4])
    assert all(items == values for items, values, _ in rows)
    assert rows[0][0] == [0, 1, 2, 3] and rows[1][0] == [8, 9, 10, 11], "the others keep their places"
    report = it.report()
    assert report.dropped_batches == 2 and report.replaced_items == 0
    assert [(b.item, b.group, b.validation, b.epoch, b.count) for b in report.bad] == [(6, 0, False, 0, 2)]
    assert report.bad[0].error == "ValueError: item 6 is broken"
    assert "in __call__" in report.bad[0].traceback
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert logged == ["item 6 of training group 0 is bad: ValueError: item 6 is broken"], "once, not at each epoch"


@EXECUTORS
def test_a_bad_item_is_replaced_by_one_of_its_group(executor: Any) -> None:
    def replaced(count: int) -> tuple[list[Row], Dataloader[Any]]:
        it = loader(
            loaders.FailsFor(6, 7), group(range(20)),
            executor=executor, loader_count=count, end_at=("epoch", 2), on_error="replace",
        )  # fmt: skip
        return run(it), it

    rows, it = replaced(1)
    assert len(rows) == 10 and all(items == values for items, values, _ in rows)
    assert rows[1][2] == [False, False, True, True] and rows[0][2] == [False] * 4
    assert not any(bad in items for items, _, _ in rows for bad in (6, 7))
    assert sum(map(sum, (mask for _, _, mask in rows))) == it.report().replaced_items == 4
    assert it.report().bad.items() == [6, 7] and it.report().dropped_batches == 0
    assert rows == replaced(3)[0], "which one it is does not depend on the workers"


def test_a_substitute_has_its_own_descriptor_seed_and_additional_data() -> None:
    data = [10 * i for i in range(8)]
    it = loader(loaders.FailsFor(20, told=True), group(data, 8, seed=4), on_error="replace")
    with it:
        batch: Batch[int] = next(it)
        row = batch.replaced.tolist().index(True)
        stand_in = batch.indices[row]
        assert stand_in != 2 and batch.data[row] == 10 * stand_in == batch.additional["item"][row]
        # With all items in one batch, the stand-in is there in its own right, too.
        other = next(i for i in range(8) if batch.indices[i] == stand_in and i != row)
        assert batch.seeds[row] == batch.seeds[other], "a seed belongs to the item, not to the row"
        del batch


def test_padding_that_repeats_a_substitute_is_marked_too() -> None:
    it = loader(loaders.FailsFor(8), group(range(10), 4, remainder="pad"), on_error="replace")
    rows = run(it)
    items, values, mask = rows[2]
    assert items == values == [items[0], 9, items[0], 9] and mask == [True, False, True, False]


@EXECUTORS
def test_raising_ends_the_run_at_the_items_batch(executor: Any) -> None:
    it = loader(loaders.FailsFor(6), group(range(20)), executor=executor, on_error="raise")
    with it:
        assert next(it).indices[0] == 0
        with pytest.raises(LoaderError) as caught:
            next(it)
    assert caught.value.item_index == 6


@EXECUTORS
def test_validation_items_have_policies_too(executor: Any) -> None:
    validation = ("epoch", 1, group(range(100, 108)))
    for mode, passes in (("drop", 1), ("replace", 2)):
        it = loader(
            loaders.FailsFor(101), group(range(8)), executor=executor, validation=validation, on_error=mode,
            end_at=("epoch", 2),
        )  # fmt: skip
        with it:
            batches = [(b.is_validation, list(b.indices), b.replaced.any()) for b in it]
        assert len([b for b in batches if b[0]]) == 2 * passes
        if mode == "replace":
            pairs = [indices for is_validation, indices, _ in batches if is_validation]
            assert pairs[:2] == pairs[2:], "every pass over the validation data is the same"
        assert [(b.validation, b.item, b.count) for b in it.report().bad] == [(True, 1, 2)]


@EXECUTORS
def test_an_item_that_fails_at_first_is_tried_again(executor: Any) -> None:
    load = loaders.FailsAtFirst(times=2)
    policy = ErrorPolicy(mode="raise", retries=2, backoff=0.001)
    it = loader(load, group(range(12)), executor=executor, on_error=policy)
    assert [items for items, _, _ in run(it)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert bad(it) == []


def test_retries_that_are_used_up_are_told() -> None:
    it = loader(loaders.FailsAtFirst(times=3), group(range(4)), on_error=ErrorPolicy("raise", retries=2, backoff=0.0))
    with pytest.raises(LoaderError, match=r"could not be loaded: .* \(tried 3 times\)"):
        run(it)


def test_waits_between_retries_double(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("hydrax_gpu._exec.chunk.ChunkRunner._wait", lambda self, seconds: waits.append(seconds) or True)
    run(loader(loaders.FailsFor(0), group(range(8)), on_error=ErrorPolicy(retries=3, backoff=0.5)))
    assert waits == [0.5, 1.0, 2.0]


def test_a_loader_that_closes_does_not_wait_for_a_retry() -> None:
    it = loader(
        loaders.FailsFor(0, 1, 2, 3), group(range(400)), executor="thread",
        on_error=ErrorPolicy(retries=3, backoff=3600.0),
    )  # fmt: skip
    begin = time.monotonic()
    with it:
        pass
    assert time.monotonic() - begin < 4, "it would be left behind after 5 seconds"


# Budgets.


def test_more_bad_items_than_the_budget_allows_are_an_error_that_lists_them() -> None:
    it = loader(loaders.FailsFor(1, 9, 17), group(range(20)), on_error=ErrorPolicy(budget=2))
    seen: list[int] = []
    with it, pytest.raises(TooManyBadItems) as caught:
        for batch in it:
            seen.append(batch.indices[0])
            del batch
    assert seen == [4, 12]
    assert caught.value.bad.items() == [1, 9, 17]
    text = str(caught.value)
    assert "more items are bad than the budget of the ErrorPolicy allows (2). Bad items so far: 3." in text
    assert "item 9 of training group 0 (epoch 0): ValueError: item 9 is broken" in text
    assert "Traceback of the first:" in text and "in __call__" in text


def test_an_item_that_is_bad_in_each_epoch_is_one_of_the_budget() -> None:
    it = loader(loaders.FailsFor(1, 9), group(range(20)), on_error=ErrorPolicy(budget=0.1), end_at=("epoch", 5))
    run(it)
    assert sorted(bad(it)) == [(1, 5), (9, 5)]


@EXECUTORS
@pytest.mark.parametrize("mode", ["drop", "replace"])
def test_a_run_in_which_everything_fails_raises(executor: Any, mode: Any) -> None:
    it = loader(loaders.FailsFor(*range(20)), group(range(20)), executor=executor, on_error=mode, end_at=None)
    with pytest.raises(TooManyBadItems) as caught:
        run(it)
    if mode == "drop":
        assert "all batches of a whole epoch (5 in a row) had bad items" in str(caught.value)
        assert caught.value.bad.items() == list(range(20))
    else:
        assert "no other item of its group can stand in for a bad item" in str(caught.value)


def test_a_large_run_in_which_everything_fails_raises_soon() -> None:
    class Broken:
        def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
            raise OSError("the file server is gone")

    it = loader(Broken(), group(range(10**6)), end_at=None)
    with pytest.raises(TooManyBadItems, match="each of the first 64 batches had bad items") as caught:
        run(it)
    assert len(caught.value.bad) == 64 * 4


def test_a_run_of_which_nothing_is_left_raises_at_its_end() -> None:
    it = loader(loaders.FailsFor(1, 5), group(range(40)), end_at=("batch", 2))
    with pytest.raises(TooManyBadItems, match=r"all batches \(2\) had bad items, and nothing is left"):
        run(it)


def test_a_resumed_run_whose_last_batch_is_bad_ends_in_peace() -> None:
    first = loader(loaders.FailsFor(39), group(range(40)), end_at=("epoch", 1))
    with first:
        for _ in range(9):
            next(first)
        state = json.loads(json.dumps(first.state()))
    assert run(loader(loaders.FailsFor(39), group(range(40)), start_at=state)) == []


# Skip lists and states.


def test_a_report_of_bad_items_is_a_skip_list(tmp_path: Path) -> None:
    first = loader(loaders.FailsFor(6, 15), group(range(20)), on_error="replace")
    rows = run(first)
    first.report().bad.save(tmp_path / "bad.json")
    calls: list[int] = []

    def load(item: int, arrays: Any, seed: int | None) -> None:
        calls.append(item)
        loaders.fill(item, arrays, seed)

    for mode in ("replace", "raise"):
        calls.clear()
        again = loader(load, group(range(20)), on_error=ErrorPolicy(mode, skip=tmp_path / "bad.json", budget=0))
        assert run(again) == rows and not {6, 15} & set(calls)
        assert again.report().bad.items() == [6, 15] and again.report().replaced_items == 2
    dropping = loader(load, group(range(20)), on_error=ErrorPolicy(skip=first.report().bad, budget=0))
    assert [items[0] for items, _, _ in run(dropping)] == [0, 8, 16]
    assert dropping.report().dropped_batches == 2


def test_a_skip_list_that_covers_everything_is_an_error_and_no_endless_loop() -> None:
    skip = [BadItem(item=i) for i in range(0, 20, 4)]
    with pytest.raises(TooManyBadItems, match="all batches of a whole epoch"):
        run(loader(training=group(range(20)), on_error=ErrorPolicy(skip=skip), end_at=None))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (BadItem(item=20), "names item 20 of training group 0, which has 20 items. Is it of other data?"),
        (BadItem(item=0, group=1), "names item 0 of training group 1, but there are 1 training groups"),
        (BadItem(item=0, validation=True), "names item 0 of validation group 0, but there are 0 validation groups"),
    ],
)
def test_a_skip_list_of_other_data_is_refused(item: BadItem, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        loader(training=group(range(20)), on_error=ErrorPolicy(skip=[item]))


@pytest.mark.parametrize("mode", ["drop", "replace"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_goes_on_from_every_state_with_its_bad_items(mode: Any, deterministic: bool) -> None:
    def make(start_at: Any = (0, 0)) -> Dataloader[Any]:
        return loader(
            loaders.FailsFor(3, 6, 17), group(range(22), 4, remainder="short"), end_at=("epoch", 2), start_at=start_at,
            on_error=mode, deterministic=deterministic,
        )  # fmt: skip

    whole = make()
    rows = run(whole)
    for stop in range(len(rows)):
        first = make()
        with first:
            head = [
                (list(b.indices), b.arrays["y"].tolist(), b.replaced.tolist())
                for _, b in zip(range(stop), first, strict=False)
            ]
            state = json.loads(json.dumps(first.state()))
        second = make(state)
        both = head + run(second)
        # A batch that waits for a substitute is overtaken if it may be.
        assert both == rows if deterministic else sorted(both) == sorted(rows)
        assert sorted(bad(second)) == sorted(bad(whole)), "counted on, and none twice"
        assert second.report().dropped_batches == whole.report().dropped_batches


# Workers that die.


def test_dead_workers_are_replaced_and_nothing_changes() -> None:
    data = DataGroup(8, range(400), loader_arrays={"x": ((4,), "float32", "float32"), "seed": ((2,), "u4", "u4")})

    def run_once(kills: int) -> tuple[list[Any], Dataloader[Any]]:
        rows: list[Any] = []
        it = Dataloader(loaders.draw, data, loader_count=4, end_at=("epoch", 4), on_error=ErrorPolicy(restarts=100))
        with it:
            for number, batch in enumerate(it):
                rows.append((list(batch.indices), batch.arrays["x"].tolist(), batch.additional["seed"]))
                del batch
                if kills and number % 9 == 4:
                    workers = it.report().workers
                    os.kill(workers[number % len(workers)].pid, signal.SIGKILL)
                    kills -= 1
        return rows, it

    clean, _ = run_once(0)
    killed, it = run_once(20)
    assert killed == clean
    report = it.report()
    assert len(report.worker_deaths) == 20 and {death.exitcode for death in report.worker_deaths} == {-9}
    assert report.bad == () and report.dropped_batches == 0
    assert "20 workers were replaced" in str(report)


@pytest.mark.parametrize("how", ["kill", "segfault", "exit"])
def test_an_item_that_kills_its_worker_each_time_is_a_bad_item(how: str) -> None:
    it = loader(
        loaders.Lethal(how, 6), group(range(20)), executor="process", loader_count=2, on_error="replace",
        end_at=("epoch", 3),
    )  # fmt: skip
    rows = run(it)
    assert all(items == values and 6 not in items for items, values, _ in rows) and len(rows) == 15
    report = it.report()
    assert [(b.item, b.lethal) for b in report.bad] == [(6, True)]
    assert len(report.worker_deaths) == 3 and {death.suspect for death in report.worker_deaths[:2]} == {6}
    assert "3 workers died over it; the last" in report.bad[0].error
    if how == "segfault":
        assert "Segmentation fault" in report.bad[0].traceback and "in __call__" in report.bad[0].traceback
    again = loader(
        loaders.Lethal(how, 6), group(range(20)), executor="process", start_at=it.state(), end_at=("epoch", 4),
        on_error="replace",
    )  # fmt: skip
    assert len(run(again)) == 5 and again.report().worker_deaths == (), "a state knows what not to try"


def test_a_lethal_item_raises_if_that_is_the_policy() -> None:
    it = loader(loaders.Lethal("segfault", 6), group(range(20)), executor="process", on_error="raise")
    with it:
        next(it)
        with pytest.raises(LoaderError, match=r"item 6 .* 3 workers died over it") as caught:
            next(it)
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerDied) and cause.exitcode == -signal.SIGSEGV and cause.items == [6]


def test_a_death_is_seen_within_two_seconds_and_told() -> None:
    it = loader(loaders.sleeps_for_ever_quietly, executor="process", on_error=ErrorPolicy(restarts=0))
    with it:
        while not it.report().workers:
            os.sched_yield()
        pid = it.report().workers[0].pid
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            next(it)
        assert time.monotonic() - begin < 2
    assert caught.value.pid == pid and caught.value.exitcode == -9 and caught.value.items[:4] == [0, 1, 2, 3]


def test_a_worker_that_dies_while_the_engines_thread_sleeps_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer hears of it, being the last who waits, and must wake the thread that can start another."""
    # Whether the engine's thread sleeps or stands back when the consumer comes is a matter of who was first. Here it
    # always sleeps.
    monkeypatch.setattr(
        EngineThread,
        "_stand_back",
        lambda self: self._runner.inbox.wait(Waiter.ENGINE, None, self._stay_awake),
    )
    it = loader(loaders.fill, group(range(200)), executor="process", timeout_sec=20)
    with it:
        rows = [next(it).indices[0]]
        stream = running_streams()[0]
        inbox = stream.runner.inbox
        pid = it.report().workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        over = threading.Event()

        def kill() -> None:
            while not (inbox.asleep(Waiter.CONSUMER) and inbox.asleep(Waiter.ENGINE)) and not over.is_set():
                os.sched_yield()
            os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            for batch in it:
                rows.append(batch.indices[0])
                del batch
        finally:
            over.set()
            thread.join()
    assert rows == list(range(0, 200, 4)) and len(it.report().worker_deaths) == 1


def test_deaths_past_the_budget_are_an_error() -> None:
    it = loader(
        loaders.DiesIdle(), group(range(200)), executor="process", on_error=ErrorPolicy(restarts=3), end_at=None
    )
    with it, pytest.raises(WorkerDied, match=r"\d deaths are more than the ErrorPolicy allows \(restarts\)"):
        for batch in it:
            del batch
    assert len(it.report().worker_deaths) >= 3


def test_a_worker_that_cannot_be_started_again_ends_the_run(tmp_path: Path) -> None:
    startup = loaders.StartsOnce(str(tmp_path / "started"))
    it = loader(
        loaders.Lethal("exit", 6), group(range(20)), executor="process", startup_func=startup,
        on_error=ErrorPolicy(restarts=2),
    )  # fmt: skip
    with it, pytest.raises(WorkerStartError, match="a worker could not start: OSError: the licence is taken"):
        for batch in it:
            del batch


# What the user's objects do on their way.


@EXECUTORS
@pytest.mark.parametrize("retries", [0, 1])
def test_the_frames_that_an_error_went_through_hold_no_batch(executor: Any, retries: int) -> None:
    """Without the garbage collector: an exception is a cycle of frames, and those of next() know the batch."""
    gc.collect()
    gc.disable()
    try:
        it = loader(
            loaders.FailsFor(*range(1, 200, 9)), group(range(200)), executor=executor, depth=2, delivery="alias",
            timeout_sec=10, on_error=ErrorPolicy(retries=retries, backoff=0.0),
        )  # fmt: skip
        assert len(run(it)) == 50 - 23
    finally:
        gc.enable()


def test_what_cannot_be_unpickled_here_is_a_bad_item_and_the_others_are_not() -> None:
    it = loader(loaders.returns_the_unreadable, group(range(12)), executor="process", on_error="replace")
    rows = run(it)
    assert len(rows) == 3 and rows[0][2] == [False, False, True, False]
    assert it.report().bad.items() == [2]
    assert "what the loader function returned cannot be unpickled (RuntimeError: not in this process)" in (
        it.report().bad[0].error
    )


def test_descriptors_that_cannot_be_sent_are_bad_items_and_the_others_are_not() -> None:
    data: list[Any] = [0, 1, lambda: 2, 3, *range(4, 12)]
    it = loader(training=group(data), executor="process", on_error="replace")
    rows = run(it)
    assert [len(items) for items, _, _ in rows] == [4, 4, 4] and rows[0][2] == [False, False, True, False]
    assert it.report().bad.items() == [2] and "its descriptor could not be sent" in it.report().bad[0].error


def test_additional_data_of_a_replaced_item_is_not_left_over() -> None:
    it = loader(loaders.FailsAfterTelling(2), group(range(12)), on_error="replace")
    with it:
        batch = next(it)
        row = batch.replaced.tolist().index(True)
        assert batch.additional["item"][row] == batch.indices[row] != 2
        assert np.array_equal(batch.arrays["y"], batch.indices)
        del batch


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_loader_function_may_raise_anything(executor: Any) -> None:
    it = loader(loaders.raises_a_base_exception, group(range(20)), executor=executor)
    assert len(run(it)) == 4
    assert [b.error for b in it.report().bad] == ["KeyboardInterrupt", "GeneratorExit", "SystemExit: 3"]


def test_a_worker_that_sends_what_is_no_message_is_ended_and_nobody_is_blamed() -> None:
    policy = ErrorPolicy(restarts=2)
    it = loader(loaders.WritesToTheSocket(6), group(range(40)), executor="process", loader_count=2, on_error=policy)
    with it, pytest.raises(WorkerDied, match="It has sent what is no message"):
        for batch in it:
            del batch
    assert len(it.report().worker_deaths) == 2 and it.report().bad == ()
