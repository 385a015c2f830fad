"""What a loader refuses, and what it makes of loader functions that fail."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from hydrax_gpu import (
    BatchTimeoutError,
    Dataloader,
    ErrorPolicy,
    LoaderError,
    WorkerDied,
    WorkerStartError,
    debug_batch_references,
)
from tests import loaders
from tests.small import group, loader, rows

# Loader functions that fail.


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_an_item_that_fails_is_an_error_at_its_batch(executor: Any) -> None:
    it = loader(
        loaders.FailsFor(6), group(range(20), seed=3), executor=executor, loader_count=2, depth=4, on_error="raise"
    )
    with it:
        assert next(it).arrays["y"].tolist() == [0, 1, 2, 3]
        with pytest.raises(LoaderError) as caught:
            next(it)
        with pytest.raises(LoaderError):
            next(it)
    error = caught.value
    assert (error.item_index, error.group_index, error.validation, error.epoch) == (6, 0, False, 0)
    assert isinstance(error.seed, int)
    assert isinstance(error.__cause__, ValueError) and str(error.__cause__) == "item 6 is broken"
    assert "ValueError: item 6 is broken" in str(error) and "in __call__" in error.worker_traceback
    state = it.state()
    assert (state["epoch"], state["batch"]) == (0, 1), "the state stands before the batch that could not be had"


def test_an_error_in_validation_says_so() -> None:
    it = loader(loaders.FailsFor(102), validation=("batch", 1, group(range(100, 104))), on_error="raise")
    with it:
        next(it)
        with pytest.raises(LoaderError, match=r"item 2 of validation group 0 .* could not be loaded") as caught:
            next(it)
    assert caught.value.validation and caught.value.seed is None


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_what_a_loader_function_must_not_return(executor: Any) -> None:
    it = loader(loaders.returns_a_list, executor=executor, on_error="raise")
    with it, pytest.raises(LoaderError) as caught:
        next(it)
    assert isinstance(caught.value.__cause__, TypeError)
    assert "the loader function returned list, wanted a dict of additional data or None" in str(caught.value)
    assert caught.value.item_index == 0


def test_additional_data_that_cannot_be_pickled_fails_its_item() -> None:
    with loader(loaders.returns_a_lambda, executor="process", on_error="raise") as it:
        with pytest.raises(LoaderError) as caught:
            next(it)
        assert caught.value.item_index == 2
        assert "what the loader function returned cannot be pickled" in str(caught.value)


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_additional_data_need_not_be_picklable_in_this_process(executor: Any) -> None:
    with loader(loaders.returns_a_lambda, executor=executor) as it:
        assert next(it).get_additional("x", 2)() == 0


def test_a_descriptor_that_cannot_be_pickled_fails_its_item() -> None:
    it = loader(training=group([0, 1, lambda: 2, 3]), executor="process", on_error="raise")
    with it, pytest.raises(LoaderError) as caught:
        next(it)
    assert caught.value.item_index == 2
    assert "could not be sent to a worker" in str(caught.value)


def test_a_descriptor_that_cannot_be_had_fails_its_item() -> None:
    class Broken(list[int]):
        def __getitem__(self, index: Any) -> Any:
            if index == 5:
                raise OSError("the list of files is gone")
            return super().__getitem__(index)

    with loader(training=group(Broken(range(8))), on_error="raise") as it:
        next(it)
        with pytest.raises(LoaderError, match="the list of files is gone") as caught:
            next(it)
    assert caught.value.item_index == 5 and isinstance(caught.value.__cause__, OSError)


def test_a_loader_function_that_cannot_be_pickled_is_refused_with_advice() -> None:
    it = loader(lambda item, arrays, seed: None, executor="process")
    with pytest.raises(TypeError) as caught, it:
        pass
    assert "the loader function or startup_func cannot be sent to worker processes" in str(caught.value)
    assert "executor='thread' and executor='inline' take any callable" in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_any_callable_works_in_this_process(executor: Any) -> None:
    assert rows(loader(lambda *arguments: loaders.fill(*arguments), executor=executor))[0] == [0, 1, 2, 3]


def test_a_worker_that_is_killed_is_an_error_with_its_status_and_items() -> None:
    with loader(loaders.die, executor="process", depth=1, on_error=ErrorPolicy(restarts=0)) as it:
        next(it)
        with pytest.raises(WorkerDied) as caught:
            next(it)
    assert caught.value.exitcode == -9 and caught.value.items == [4, 5, 6, 7]


def test_a_loader_function_that_hangs_is_named_after_the_timeout() -> None:
    begun, release = threading.Event(), threading.Event()

    def load(item: int, arrays: Any, seed: int | None) -> None:
        begun.set()
        release.wait()

    with loader(load, executor="thread", timeout_sec=0.01) as it:
        begun.wait()
        with pytest.raises(BatchTimeoutError) as caught:
            next(it)
        release.set()
    assert "no batch has been produced for 0.01 seconds (timeout_sec)" in str(caught.value)
    assert "Worker 0 (thread hydrax_gpu-loader-0) is at item 0 of training group 0, number 1 of 4" in str(caught.value)
    assert isinstance(caught.value, TimeoutError)


def set_timeout(it: Dataloader[Any], seconds: float) -> None:
    # A run has one timeout. A test that expects some batches and waits in vain for others needs two, or luck.
    assert it._stream is not None
    it._stream._timeout = seconds


def test_batches_that_are_kept_are_named_after_the_timeout_and_can_be_found() -> None:
    it = loader(executor="thread", depth=1, delivery="alias")
    with it:
        kept = next(it)
        set_timeout(it, 0.01)
        with pytest.raises(BatchTimeoutError, match="All slots are lent") as caught:
            next(it)
        first, *holders = debug_batch_references().splitlines()
        assert first == "slot 0: <TrainingBatch 0 of epoch 0: x: float32[4, 3], y: int32[4]> is held by"
        assert len(holders) == 1, "the search does not find itself"
        assert holders[0].startswith(
            "  local variable kept of test_batches_that_are_kept_are_named_after_the_timeout_and_can_be_found ("
        )
        del kept, caught
        assert "TrainingBatch 0" not in debug_batch_references(), "nor does it keep what it found"
        set_timeout(it, 60)
        batch = next(it)
        assert batch.arrays["y"].tolist() == [4, 5, 6, 7], "the run can go on"
        del batch


def test_an_array_that_outlives_its_batch_can_be_found() -> None:
    class Log:
        def __init__(self, value: Any) -> None:
            self.values = [value]

    with loader(delivery="alias", end_at=("batch", 1)) as it:
        log = Log(next(it).arrays["y"])
        first, *holders = debug_batch_references().splitlines()
        assert first == "slot 0: array 'y' of a batch that is gone is held by"
        assert holders[0] == "  list of 1, index [0]"
        assert any("local variable log of test_an_array" in holder for holder in holders)
        log.values.clear()
        assert debug_batch_references() == ""


# Starting.


def test_startup_func_runs_in_each_process(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # for reading; and writers need not wait for a reader
    it = loader(loaders.pid, executor="process", loader_count=2, startup_func=loaders.WritesPid(str(path)))
    with it:
        started = {int(os.read(pipe, 16)) for _ in range(2)}
        loaded = {pid for batch in it for pid in batch.additional["pid"]}
    os.close(pipe)
    assert len(started) == 2 and os.getpid() not in started
    assert loaded <= started


def test_startup_func_runs_in_each_thread() -> None:
    together = threading.Barrier(3, timeout=60)
    with loader(executor="thread", loader_count=2, startup_func=together.wait) as it:
        together.wait()
        assert len(list(it)) == 2


def test_startup_func_runs_in_this_thread() -> None:
    calls: list[threading.Thread] = []
    with loader(startup_func=lambda: calls.append(threading.current_thread())) as it:
        list(it)
    assert calls == [threading.main_thread()]


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_startup_func_that_raises_is_the_cause_of_a_worker_start_error(executor: Any) -> None:
    it = loader(executor=executor, startup_func=loaders.fails_to_start)
    with it, pytest.raises(WorkerStartError) as caught:
        next(it)
    assert isinstance(caught.value.__cause__, OSError)
    assert "no such licence server" in str(caught.value) and "in fails_to_start" in str(caught.value)


# Arguments.
