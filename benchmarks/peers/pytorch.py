"""PyTorch's `DataLoader`.

Settings: a map-style data set, `default_collate`, as many worker processes as are asked for, PyTorch's own two batches
ahead for each. Workers are forked, which is PyTorch's default on Linux and the least start and memory, unless JAX has
been started before: JAX warns that a fork can then hang, and the workers are spawned. The sampler has no end, so that
no time goes into the turn of an epoch (`persistent_workers` does less). Batches are read as NumPy arrays without a
copy, as JAX's tutorial on PyTorch data loading does.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from .base import Arrays, Peer, make_item


class Items:
    """A map-style data set."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __len__(self) -> int:
        return len(self._task.data)

    def __getitem__(self, index: int) -> Arrays:
        # each worker's `random` is seeded by torch
        seed = random.getrandbits(32) if self._task.random else None
        return make_item(self._task, self._task.data[index], seed)


class Torch(Peer):
    """PyTorch's `DataLoader`, batches put together in shared memory by its workers."""

    module = "torch"
    packages = ("torch",)
    settings = "worker processes (forked; spawned once JAX runs), prefetch_factor=2, endless sampler, default_collate"

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        import torch.utils.data

        torch.set_num_threads(1)
        endless = itertools.chain.from_iterable(itertools.repeat(range(len(task.data))))
        yield iter(
            torch.utils.data.DataLoader(
                Items(task),  # type: ignore[arg-type]
                task.batch,
                sampler=endless,
                num_workers=task.workers,
                multiprocessing_context="spawn" if "jax" in sys.modules else "fork",
            )
        )

    def arrays(self, batch: Any) -> Arrays:
        return {name: tensor.numpy() for name, tensor in batch.items()}
