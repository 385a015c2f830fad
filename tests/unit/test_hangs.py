"""A loader that does not get on says why: what hangs where, and who holds its batches."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import jax
import pytest

from hydrax_gpu import BatchTimeoutError, DataGroup, Dataloader, ErrorPolicy, debug_batch_references
from tests import loaders
from tests.small import group, loader


@pytest.mark.parametrize("how", ["in Python", "in a native call"])
def test_a_loader_function_that_hangs_in_a_process_is_named_with_its_stack(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydrax_gpu._exec.procs._GRACE_SECONDS", 0.05)
    it = loader(loaders.Hangs(how, 9), group(range(40)), executor="process", loader_count=2, timeout_sec=1)
    rows: list[int] = []
    with it:
        with pytest.raises(BatchTimeoutError) as caught:
            for batch in it:
                rows.append(batch.indices[0])
                del batch
        workers = {worker.pid for worker in it.report().workers}
    text = str(caught.value)
    assert rows == [0, 4], "what was done before is handed out"
    assert caught.value.items == (9,)
    assert text.startswith("no batch has been produced for 1 seconds (timeout_sec).\n")
    assert any(f"(process {pid}) is at item 9 of training group 0, number " in text for pid in workers)
    assert " that it took up 1." in text or " that it took up 0.9" in text
    ((_, stack),) = caught.value.stacks.items()
    assert stack in text and "loaders.py" in stack and "in __call__" in stack
    assert ("in acquire_natively" in stack) == (how == "in a native call")
    assert "slot 2 filling" in text or "slot 2 full" in text


def test_threads_that_hang_show_their_stacks() -> None:
    release = threading.Event()

    def load_something(item: int, arrays: Any, seed: int | None) -> None:
        release.wait()

    with loader(load_something, executor="thread", loader_count=2, timeout_sec=0.3) as it:
        with pytest.raises(BatchTimeoutError) as caught:
            next(it)
        release.set()
    assert len(caught.value.items) == len(caught.value.stacks) == 2
    assert all("in load_something" in stack and "release.wait()" in stack for stack in caught.value.stacks.values())


def test_a_stopped_worker_is_said_to_be_stopped_and_goes_on_after_the_error() -> None:
    it = loader(loaders.fill, group(range(200)), executor="process", timeout_sec=0.5, end_at=("epoch", 1))
    with it:
        rows = [next(it).indices[0]]
        pid = it.report().workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BatchTimeoutError, match=r"stopped by a signal \(SIGCONT lets it go on\)"):
                for batch in it:
                    rows.append(batch.indices[0])
                    del batch
        finally:
            os.kill(pid, signal.SIGCONT)
        for batch in it:
            rows.append(batch.indices[0])
            del batch
    assert rows == list(range(0, 200, 4)), "a time-out loses nothing"


def test_a_worker_that_does_not_get_ready_is_said_to_be_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydrax_gpu._exec.procs._GRACE_SECONDS", 0.05)
    it = loader(loaders.fill, executor="process", startup_func=loaders.hang_at_start, timeout_sec=1)
    with it, pytest.raises(BatchTimeoutError, match="is starting:") as caught:
        next(it)
    assert caught.value.items == () and "in hang_at_start" in caught.value.stacks[0]


def test_batches_that_hold_all_slots_are_listed_with_their_holders() -> None:
    it = loader(loaders.fill, group(range(40)), executor="thread", delivery="alias", timeout_sec=0.2)
    with it:
        my_collection = [next(it) for _ in range(3)]
        with pytest.raises(BatchTimeoutError) as caught:
            next(it)
        assert "All slots are lent" in str(caught.value)
        assert str(caught.value).count("local variable my_collection of test_batches_that_hold_all_slots") == 3
        my_collection.clear()
        assert next(it).indices[0] == 12


def _kept(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [text for text in texts if "is still referenced" in text]


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_batches_that_are_kept_are_warned_about_before_the_loader_stalls(
    depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    it = loader(loaders.fill, group(range(400)), executor="thread", delivery="alias", depth=depth, timeout_sec=0.2)
    my_history: list[Any] = []
    with it:
        with pytest.raises(BatchTimeoutError):
            for _ in range(depth + 1):
                assert _kept(caplog) == [] or len(my_history) >= depth - 1
                my_history.append(next(it))
        assert len(my_history) == depth
        (text,) = _kept(caplog)
        assert "local variable my_history of test_batches_that_are_kept" in text
        assert f"holds one of {depth} slots" in text
        my_history.clear()


@pytest.mark.parametrize("what", ["the batch", "an array of it"])
def test_one_batch_that_is_kept_is_named_within_depth_steps_and_once(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    depth = 4
    it = loader(loaders.fill, group(range(400)), executor="thread", delivery="alias", depth=depth)
    with it:
        batch = next(it)
        souvenir = batch if what == "the batch" else batch.arrays["y"]
        del batch
        for _ in range(depth):
            batch = next(it)
            del batch
        assert len(_kept(caplog)) == 1 and "local variable souvenir" in _kept(caplog)[0]
        for _ in range(50):
            batch = next(it)
            del batch
        assert len(_kept(caplog)) == 1
        assert "souvenir" in debug_batch_references()
        del souvenir
        assert debug_batch_references() == ""


def test_an_array_that_was_converted_holds_no_slot(caplog: pytest.LogCaptureFixture) -> None:
    """`x` is declared as uint8 in the slot and float32 in JAX."""
    with loader(loaders.fill, group(range(400)), executor="thread", delivery="alias") as it:
        converted = [next(it).arrays["x"] for _ in range(20)]
        assert debug_batch_references() == "" and len(converted) == 20
    assert _kept(caplog) == []


@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_loops_that_keep_nothing_are_not_warned_about(delivery: Any, caplog: pytest.LogCaptureFixture) -> None:
    with loader(loaders.fill, group(range(400)), executor="thread", delivery=delivery) as it:
        for batch in it:
            total = jax.numpy.sum(batch.arrays["x"])
        del batch, total
    assert _kept(caplog) == []


def test_copies_may_be_kept_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with loader(loaders.fill, group(range(40)), delivery="copy", executor="thread") as it:
        assert len(list(it)) == 10
    assert _kept(caplog) == []


def test_a_placement_that_hangs_on_the_loaders_thread_is_named() -> None:
    release, placing = threading.Event(), threading.Event()

    def place_slowly(arrays: Mapping[str, Any], *_: Any) -> dict[str, Any]:
        if threading.current_thread() is not threading.main_thread():
            placing.set()
            release.wait()
        return {name: jax.device_put(array.copy()) for name, array in arrays.items()}

    it = loader(loaders.fill, group(range(400)), executor="thread", placement_func=place_slowly, timeout_sec=0.3)
    with it:
        next(it)
        assert placing.wait(30), "the loader places ahead while we are away"
        with pytest.raises(BatchTimeoutError, match="the loader's own thread has not come back from placing") as caught:
            for batch in it:
                del batch
        assert "in place_slowly" in str(caught.value)
        release.set()


def test_a_placement_that_hangs_in_next_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "next() has not come back" in record.getMessage():
                release.set()

    def place_slowly(arrays: Mapping[str, Any], *_: Any) -> dict[str, Any]:
        if threading.current_thread() is threading.main_thread():
            assert release.wait(30)
        return {name: jax.device_put(array.copy()) for name, array in arrays.items()}

    handler = Handler()
    logging.getLogger("hydrax_gpu").addHandler(handler)
    try:
        it = loader(loaders.fill, group(range(400)), executor="thread", placement_func=place_slowly, timeout_sec=0.3)
        with it:
            for _ in range(50):  # some of them are placed here, and then it is said where that hangs
                batch = next(it)
                del batch
                if release.is_set():
                    break
    finally:
        logging.getLogger("hydrax_gpu").removeHandler(handler)
    assert release.is_set() and "in place_slowly" in caplog.text


def test_a_thread_that_never_comes_back_is_left_behind_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hydrax_gpu._exec.threads.GRACE_SECONDS", 0.05)
    release, begun = threading.Event(), threading.Event()

    def hang_here(item: int, arrays: Any, seed: int | None) -> None:
        begun.set()
        release.wait()

    with loader(hang_here, executor="thread"):
        begun.wait()
    assert "hydrax_gpu-loader-0 did not come back from the loader function" in caplog.text
    assert "in hang_here" in caplog.text
    release.set()
    for thread in threading.enumerate():
        if thread.name == "hydrax_gpu-loader-0":
            thread.join()


def test_waiting_for_ever_is_waiting_for_ever() -> None:
    """With no time-out, a stopped worker is waited for until it goes on."""
    data = DataGroup(4, range(40), loader_arrays={"x": ((), "int32", "int32")})
    it = Dataloader(loaders.fill, data, timeout_sec=0, end_at=("epoch", 1), on_error=ErrorPolicy())
    with it:
        next(it)
        pid = it.report().workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        assert sum(1 for _ in it) == 9
