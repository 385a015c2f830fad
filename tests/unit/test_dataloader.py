"""The loader as its user sees it: what comes, when, how it is used, and how it ends."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import (
    DataGroup,
    TrainingBatch,
    ValidationBatch,
    debug_batch_references,
)
from hydrax_gpu._engine.inbox import Waiter
from tests import loaders
from tests.small import group, loader, rows

# Values.


@pytest.mark.parametrize("delivery", ["alias", "copy", "auto"])
@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_every_executor_and_delivery_gives_the_same_values(executor: Any, delivery: Any) -> None:
    it = loader(loaders.fill_and_tell, executor=executor, delivery=delivery, end_at=("epoch", 3), depth=2)
    count = 0
    with it:
        for batch in it:
            expected = [[0, 1, 2, 3], [4, 5, 6, 7]][count] if count < 2 else list(batch.indices)
            assert batch.arrays["y"].tolist() == expected
            assert np.asarray(batch.arrays["x"]).tolist() == [[i] * 3 for i in expected]
            assert list(batch.additional["item"]) == expected
            count += 1
            del batch
    assert count == 6
    assert it.report().delivery == ("alias" if delivery == "alias" else "copy",)


@pytest.mark.parametrize("size", [1, 700])
def test_auto_copies_small_batches_and_shares_large_ones(size: int) -> None:
    large = group(loader_arrays={"y": ((), "i4", "i4"), "x": ((size, 256), np.float32, np.float32)})
    it = loader(training=large, delivery="auto")
    assert rows(it) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert it.report().delivery == ("copy" if size == 1 else "alias",)


def test_an_item_sees_its_own_rows_and_may_write_all_of_them() -> None:
    def load(item: int, arrays: Any, seed: int | None) -> None:
        assert isinstance(arrays, MappingProxyType) and list(arrays) == ["x", "y"]
        assert arrays["x"].shape == (3,) and arrays["y"].shape == ()
        assert arrays["x"].dtype == np.uint8 and arrays["x"].flags.writeable and arrays["x"].flags.c_contiguous
        loaders.fill(item, arrays, seed)

    assert rows(loader(load)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("executor", ["process", "thread"])
@pytest.mark.parametrize(("workers", "depth"), [(3, 1), (2, 5)])
def test_the_number_of_workers_and_the_depth_are_independent(executor: Any, workers: int, depth: int) -> None:
    it = loader(executor=executor, loader_count=workers, depth=depth, end_at=("batch", 9), training=group(range(16)))
    assert [sorted(batch) for batch in rows(it)[:4]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert it.report().training_batches == 9 and it.report().depth == depth


def test_items_of_processes_are_loaded_in_other_processes_and_those_of_threads_in_this_one() -> None:
    for executor in ("process", "thread", "inline"):
        it = loader(loaders.pid, executor=executor)
        with it:
            pids = {pid for batch in it for pid in batch.additional["pid"]}
        assert (os.getpid() in pids) is (executor != "process")


# Where it begins and ends.


@pytest.mark.parametrize(
    ("end_at", "count"),
    [(("batch", 0), 0), (("batch", 1), 1), (("batch", 5), 5), (("epoch", 0), 0), (("epoch", 3), 6)],
)
def test_it_ends_before_the_batch_or_epoch_that_was_named(end_at: Any, count: int) -> None:
    it = loader(end_at=end_at)
    assert len(rows(it)) == count == it.last_batch


def test_without_an_end_it_goes_on() -> None:
    it = loader(end_at=None)
    with it:
        for _ in range(50):
            batch = next(it)
    assert batch.epoch == 24 and it.last_batch is None


@pytest.mark.parametrize("start_at", [(1, 1), (0, 3), [1, 1], (np.int64(0), np.int64(3))])
def test_it_begins_at_an_epoch_and_a_batch_of_which_there_may_be_more_than_an_epoch_has(start_at: Any) -> None:
    whole, part = loader(end_at=("epoch", 4)), loader(end_at=("epoch", 4), start_at=start_at)
    assert rows(part) == rows(whole)[3:]
    assert (part.first_batch, part.last_batch) == (3, 8)
    with loader(start_at=start_at, end_at=None) as it:
        first = next(it)
        assert (first.epoch, first.epoch_batch, first.batch_num) == (1, 1, 3)


@pytest.mark.parametrize("start_at", [(1, 0), (9, 9)])
def test_beginning_at_or_after_the_end_gives_nothing(start_at: Any) -> None:
    assert rows(loader(start_at=start_at)) == []


def test_the_iteration_stays_ended() -> None:
    it = loader()
    with it:
        assert len(list(it)) == 2
        assert list(it) == []
        with pytest.raises(StopIteration):
            next(it)
    assert not it.interrupted


def test_the_order_of_the_run_can_be_asked_for_beforehand() -> None:
    it = loader(training=[group(), group(range(12))], validation=("batch", 2, group(range(9))))
    assert (it.batches_per_epoch, it.batches_per_validation) == (5, 2)
    assert (it.first_batch, it.last_batch, it.deterministic) == (0, 5, True)
    assert loader(deterministic=False).deterministic is False
    assert loader().batches_per_validation == 0


# Use.


def test_it_runs_in_a_with_block_only() -> None:
    it = loader()
    before = (
        "the Dataloader is not running: it was not entered with a `with` block. Use `with loader:` around the loop."
    )
    for call in (it.interrupt, lambda: next(it), lambda: list(it)):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == before
    with it:
        next(it)
    for call in (it.interrupt, lambda: next(it), lambda: list(it)):
        with pytest.raises(RuntimeError, match="the Dataloader is not running: its `with` block was left"):
            call()


def test_it_is_entered_once() -> None:
    it = loader()
    with it, pytest.raises(RuntimeError, match="a Dataloader can be entered once"):
        it.__enter__()
    with pytest.raises(RuntimeError, match=r"make another one with start_at=loader.state\(\)"), it:
        pass
    assert len(rows(loader(start_at=it.state()))) == 2


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_an_error_in_the_loop_is_the_users_and_ends_the_loader(executor: Any) -> None:
    it = loader(executor=executor, end_at=None)
    with pytest.raises(ZeroDivisionError), it:
        next(it)
        raise ZeroDivisionError
    assert not debug_batch_references()


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_loader_that_is_left_at_once_leaves_nothing(executor: Any) -> None:
    with loader(executor=executor, loader_count=2):
        pass


def test_two_loaders_at_once_and_one_inside_the_other() -> None:
    outer = loader(executor="thread", end_at=("epoch", 2))
    found = []
    with outer, loader(executor="process", end_at=("epoch", 2)) as beside:
        for one, other in zip(outer, beside, strict=True):
            inner = rows(loader(training=group(one.arrays["y"].tolist(), 2)))
            assert one.arrays["y"].tolist() == other.arrays["y"].tolist() == inner[0] + inner[1]
            found += inner
            del one, other
    assert len(found) == 8


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_loader_runs_in_a_thread_of_the_users(executor: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(rows(loader(executor=executor))))
    thread.start()
    thread.join()
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_groups_may_be_shared_by_loaders() -> None:
    it = group()
    with loader(training=it) as one, loader(training=it, validation=("epoch", 1, it)) as other:
        assert next(one).group is it is next(other).group


def test_a_slot_that_is_given_back_is_filled_although_nobody_asks_for_a_batch() -> None:
    begun = [threading.Event() for _ in range(40)]

    def load(item: int, arrays: Any, seed: int | None) -> None:
        begun[item].set()
        loaders.fill(item, arrays, seed)

    data = group(range(40))
    with loader(load, data, executor="thread", delivery="alias", depth=1) as it:
        for first in range(0, 36, 4):
            batch = next(it)
            assert not begun[first + 4].is_set(), "the only slot is held"
            del batch
            assert begun[first + 4].wait(10), "the slot is free, and stays empty"


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_consumer_that_waits_is_let_go_when_another_thread_closes_the_loader(executor: Any) -> None:
    for _ in range(3):
        it = loader(loaders.WaitsForItem(7), group(range(8)), executor=executor, loader_count=2)
        it.__enter__()
        assert list(next(it).indices) == [0, 1, 2, 3]
        ended: list[Any] = []
        consumer = threading.Thread(target=lambda it=it, ended=ended: ended.append(next(it, "ended")))
        consumer.start()
        while not it._runner.inbox.asleep(Waiter.CONSUMER):
            assert consumer.is_alive()
        it.__exit__(None, None, None)
        consumer.join(10)
        assert ended == ["ended"]


# Validation.


def test_validation_comes_each_time_it_is_due_and_from_its_beginning() -> None:
    it = loader(
        end_at=("epoch", 4),
        validation=("batch", 4, group(range(100, 108))),
        training=group(range(10), shuffle_first=True),
    )
    kinds, validated, numbers = "", [], []
    with it:
        for batch in it:
            kinds += type(batch).__name__[0]
            if isinstance(batch, ValidationBatch):
                validated.append(batch.arrays["y"].tolist())
                numbers.append((batch.validation_epoch, batch.validation_epoch_batch, batch.validation_batch_num))
            else:
                assert isinstance(batch, TrainingBatch)
            del batch
    assert kinds == "TTTTVV" * 2
    assert validated == [[100, 101, 102, 103], [104, 105, 106, 107]] * 2
    assert numbers == [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]


@pytest.mark.parametrize(
    ("mode", "interval", "end_at", "kinds"),
    [
        ("epoch", 1, ("epoch", 2), "TTVTTV"),
        ("epoch", 2, ("epoch", 5), "TTTTVTTTTVTT"),
        ("batch", 3, ("batch", 7), "TTTVTTTVT"),
        ("batch", 1, ("batch", 2), "TVTV"),
        ("batch", 5, ("batch", 4), "TTTT"),
    ],
)
def test_the_interval_counts_batches_or_epochs(mode: Any, interval: int, end_at: Any, kinds: str) -> None:
    it = loader(validation=(mode, interval, group(range(4))), end_at=end_at)
    with it:
        assert "".join(type(batch).__name__[0] for batch in it) == kinds


def test_several_validation_groups_belong_to_one_pass() -> None:
    groups = [group(range(100, 104)), group(range(200, 208))]
    it = loader(validation=("epoch", 1, groups), interleave_groups=False)
    with it:
        passes = [(batch.group, batch.validation_epoch_batch) for batch in it if batch.is_validation]
    assert passes == [(groups[0], 0), (groups[1], 1), (groups[1], 2)]


def test_a_run_that_begins_later_validates_when_the_whole_run_would() -> None:
    it = loader(validation=("batch", 3, group(range(4))), start_at=(1, 0), end_at=("batch", 6))
    with it:
        found = [(type(b).__name__[0], b.validation_epoch if b.is_validation else b.batch_num) for b in it]
    assert found == [("T", 2), ("V", 0), ("T", 3), ("T", 4), ("T", 5), ("V", 1)]


# Several groups.


def order_of(groups: list[DataGroup[Any]], **options: Any) -> list[int]:
    it = loader(training=groups, **options)
    with it:
        return [groups.index(batch.group) for batch in it]


def three_groups(**options: Any) -> list[DataGroup[Any]]:
    return [group(range(n), 2, **{k: v[i] for k, v in options.items()}) for i, n in enumerate((4, 8, 2))]


def test_groups_follow_each_other_or_take_turns() -> None:
    assert order_of(three_groups(), interleave_groups=False, end_at=("epoch", 2)) == [0, 0, 1, 1, 1, 1, 2] * 2
    turns = order_of(three_groups(), end_at=("epoch", 2))
    assert turns == [0, 1, 2, 1, 0, 1, 1] * 2


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 3, 2), (0.7, 0.2, 0.1), (1, 97, 2)])
def test_weights_hold_to_within_one_batch_after_every_step(weights: tuple[float, ...]) -> None:
    order = order_of(three_groups(weight=weights), end_at=("batch", 300))
    counts: Counter[int] = Counter()
    for step, which in enumerate(order, start=1):
        counts[which] += 1
        for index, weight in enumerate(weights):
            assert abs(counts[index] - step * weight / sum(weights)) <= 1


# Items that fill no batch.


def test_dropped_items_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hydrax_gpu"):
        it = loader(end_at=("epoch", 3))
        assert rows(it)[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [record.getMessage() for record in caplog.records] == [
        "training group 0: 2 of 10 items do not fill a batch of 4 and are left out of each pass "
        "(remainder='drop'; 'pad' and 'short' keep them)"
    ]
    report = it.report()
    assert (report.items, report.dropped_items, report.padded_rows) == (24, 6, 0)


def test_items_that_validation_drops_are_counted_and_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hydrax_gpu"):
        it = loader(training=group(range(8)), validation=("epoch", 1, group(range(7))), end_at=("epoch", 3))
        assert len(rows(it)) == 9
    (record,) = caplog.records
    assert record.getMessage().startswith("validation group 0: 3 of 7 items do not fill a batch of 4")
    assert it.report().dropped_items == 9


@pytest.mark.parametrize("remainder", ["pad", "short"])
@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_pad_and_short_keep_all_items(remainder: Any, delivery: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hydrax_gpu"):
        it = loader(loaders.fill_and_tell, group(remainder=remainder), delivery=delivery, end_at=("epoch", 2))
        batches = rows(it)
    assert batches[2] == ([8, 9, 8, 9] if remainder == "pad" else [8, 9])
    report = it.report()
    assert (report.items, report.dropped_items) == (20, 0)
    assert report.padded_rows == (4 if remainder == "pad" else 0)
    assert not caplog.records


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("executor", ["process", "thread"])
def test_padding_repeats_arrays_and_additional_data(executor: Any, delivery: Any) -> None:
    it = loader(loaders.fill_and_tell, group(range(3), 8, remainder="pad"), executor=executor, delivery=delivery)
    with it:
        (batch,) = it
        expected = [0, 1, 2, 0, 1, 2, 0, 1]
        assert batch.arrays["y"].tolist() == list(batch.additional["item"]) == list(batch.data) == expected
        assert batch.get_additional("odd", 4) == "odd 1"
        assert batch.valid.sum() == 3


# The report.


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_the_report_says_what_was_done(executor: Any) -> None:
    it = loader(
        training=[group(remainder="pad"), group(weight=None)],
        validation=("epoch", 1, group(range(8))), executor=executor, depth=2, end_at=("epoch", 2),
    )  # fmt: skip
    fresh = it.report()
    assert (fresh.batches, fresh.items, fresh.seconds, fresh.first_batch_seconds) == (0, 0, 0.0, None)
    assert (fresh.workers, fresh.delivery, fresh.verdict) == ((), (), "too few batches to tell")
    rows(it)
    report = it.report()
    assert (report.training_batches, report.validation_batches, report.batches) == (10, 4, 14)
    assert (report.items, report.padded_rows, report.dropped_items) == (2 * (10 + 8 + 8), 4, 4)
    assert (report.executor, report.depth, report.delivery) == (executor, 2, ("copy",) * 3)
    assert report.first_batch_seconds is not None and 0 < report.first_batch_seconds <= report.seconds
    assert 0 <= report.first_wait_seconds <= report.wait_seconds <= report.seconds
    assert 0 <= report.waits <= report.batches + 1 and 0 <= report.wait_share <= 1
    assert report.busy_seconds > 0 and report.items_per_second > 0 and report.memory_bytes >= 2 * 512
    (worker,) = report.workers
    assert (worker.pid == os.getpid()) is (executor != "process")
    assert not worker.imported_jax and worker.start_seconds >= 0
    assert report.notes == () and report.bad == ()
    assert it.report() == report, "it stands still when the `with` block is left"


def test_the_report_can_be_read() -> None:
    it = loader(end_at=("epoch", 2))
    rows(it)
    text = str(it.report())
    assert "batches       4 training, 0 validation\n" in text
    assert "left out      4 items dropped as remainders, 0 batches dropped\n" in text
    assert "1 x inline" in text and "delivery: copy\n" in text
    assert "verdict       " in text and text.isascii()


def test_the_report_notes_exact_ratios() -> None:
    it = loader(training=three_groups(weight=(0.5, 0.25, 0.25)))
    assert it.report().notes == tuple(
        f"a training group supplies exactly {ratio} of the batches" for ratio in ("1/2", "1/4", "1/4")
    )


def test_idle_time_is_that_since_the_last_call() -> None:
    it = loader()
    assert it.idle_usec() == 0
    with it:
        list(it)
        first = it.idle_usec()
        assert first > 0 and it.idle_usec() == 0
    assert first <= it.report().wait_seconds * 1e6


# Interrupting.


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_another_thread_may_end_the_iteration(executor: Any) -> None:
    it = loader(executor=executor, end_at=None)
    count = 0
    with it:
        for batch in it:
            count += 1
            if count == 3:
                thread = threading.Thread(target=it.interrupt)
                thread.start()
                thread.join()
            del batch
        assert list(it) == []
    assert count == 3 and it.interrupted
    assert it.state()["epoch"] == 1 and it.state()["batch"] == 1, "three batches, of two an epoch"


def test_a_consumer_that_waits_is_woken() -> None:
    begun, release = threading.Event(), threading.Event()

    def load(item: int, arrays: Any, seed: int | None) -> None:
        begun.set()
        release.wait()

    it = loader(load, executor="thread", timeout_sec=0)

    def interrupt() -> None:
        begun.wait()
        it.interrupt()

    with it:
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert list(it) == []
        release.set()  # or the worker could not be waited for
        thread.join()
