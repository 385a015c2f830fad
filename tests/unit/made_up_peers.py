"""Loaders for the tests of the benchmark harness: each is wrong in a way of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers import Arrays, Peer, make_batch


def batches(task: Any) -> Iterator[Arrays]:
    """Right ones, without end."""
    while True:
        for start in range(0, len(task.data), task.batch):
            items = task.data[start : start + task.batch]
            yield make_batch(task, items, [None] * len(items))


class Plain(Peer):
    """A right one, in the main thread."""

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Arrays]]:
        yield batches(task)


class Wrong(Peer):
    """One value of its last batch is wrong."""

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Arrays]]:
        def spoilt() -> Iterator[Arrays]:
            for number, batch in enumerate(batches(task)):
                if number == len(task.data) // task.batch - 1:
                    batch["image"][-1, -1, -1, -1] ^= 1
                yield batch

        yield spoilt()


class Crashes(Peer):
    """It cannot be opened."""

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Arrays]]:
        raise RuntimeError(f"made to fail at batch {task.batch}")
        yield iter(())


class Absent(Peer):
    """Its library is not installed."""

    module = "no_such_library"


class Unfit(Peer):
    """It has no use for tiny items."""

    unfit = {"items": "loads nothing below 1 MB"}  # noqa: RUF012
