"""A fork of a process that holds a loader: it is the other process's, and the fork can do it no harm."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from hydrax_gpu import DataGroup, Dataloader
from tests import loaders
from tests.small import group, loader


def in_a_fork(body: Callable[[], None]) -> str:
    """Runs `body` in a fork, as far as the interpreter's ordinary end; returns its traceback, "" for none."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python both warn of forks with threads, and rightly
        pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            body()
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        text = file.read().decode()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_fork_cannot_take_batches_and_the_loader_goes_on(executor: Any) -> None:
    it = loader(loaders.fill, group(range(200)), executor=executor, loader_count=2)
    rows: list[int] = []
    with it:
        rows.append(next(it).indices[0])
        told = in_a_fork(lambda: print(next(it)))
        assert "RuntimeError: this process is a fork of the one that runs the Dataloader" in told
        for batch in it:
            rows.append(batch.indices[0])
            del batch
    assert rows == list(range(0, 200, 4))


def test_leaving_the_with_block_in_a_fork_ends_nobodys_workers() -> None:
    it = loader(loaders.fill, group(range(200)), executor="process", loader_count=2)
    with it:
        first = next(it)
        assert in_a_fork(lambda: it.__exit__(None, None, None)) == ""
        assert in_a_fork(it.interrupt) == ""
        assert first.indices[0] == 0 and next(it).indices[0] == 4
        assert it.report().worker_deaths == ()


def test_a_fork_that_lives_on_does_not_keep_workers_alive() -> None:
    """It has the sockets' descriptors too; the workers must see the end all the same."""
    read, write = os.pipe()
    it = loader(loaders.fill, group(range(200)), executor="process", loader_count=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with it:
            next(it)
            pids = [worker.pid for worker in it.report().workers]
            pid = os.fork()
            if pid == 0:
                os.close(write)
                os.read(read, 1)  # until the test closes its end
                os._exit(0)
    left = [worker for worker in pids if os.path.exists(f"/proc/{worker}")]
    os.close(write)
    os.close(read)
    os.waitpid(pid, 0)
    assert left == []


def test_signals_in_a_fork_are_its_own() -> None:
    before = signal.getsignal(signal.SIGINT)

    def look() -> None:
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    with loader(executor="inline", sigterm=True) as outer, loader(executor="inline") as inner:
        assert next(outer) and next(inner)
        assert signal.getsignal(signal.SIGINT) is not before
        assert in_a_fork(look) == ""
        assert signal.getsignal(signal.SIGINT) is not before


def test_a_fork_can_have_a_loader_of_its_own() -> None:
    def load_two() -> None:
        own = loader(loaders.fill, executor="thread", delivery="copy")
        own.__enter__()
        own.__exit__(None, None, None)

    with loader(executor="thread") as it:
        next(it)
        assert in_a_fork(load_two) == ""


# More loaders than one.


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_loaders_side_by_side_and_nested_do_not_touch_each_other(executor: Any) -> None:
    def make(offset: int) -> Dataloader[Any]:
        return loader(loaders.fill, group(range(offset, offset + 40)), executor=executor)

    with make(0) as first, make(40) as second:
        for one, two in zip(first, second, strict=True):
            assert [value + 40 for value in one.arrays["y"].tolist()] == two.arrays["y"].tolist()
            with make(80) as third:
                assert next(third).arrays["y"].tolist() == [80, 81, 82, 83]
            del one, two


def test_loaders_in_threads_run_at_the_same_time() -> None:
    sums: dict[int, int] = {}
    data = DataGroup(4, range(200), loader_arrays={"x": ((), "int32", "int32")})

    def consume(number: int) -> None:
        total = 0
        with Dataloader(loaders.fill, data, executor="thread", end_at=("epoch", 2)) as it:
            for batch in it:
                total += int(batch.arrays["x"].sum())
                del batch
        sums[number] = total

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == dict.fromkeys(range(4), 2 * sum(range(200)))
