"""jax-dataloader, with its own back end ("jax").

Settings: a data set whose `__getitem__` takes the batch's numbers at once, as its `ArrayDataset` does, so that nothing
is copied together. This back end has no workers: it loads in the main thread when a batch is asked for, and whatever
is said of their number is ignored. With its other back ends it is PyTorch's or TensorFlow's loader, which are measured
themselves.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from .base import Peer, make_batch


class JaxDataloader(Peer):
    """Its `DataLoader` on the back end "jax"; batches are NumPy arrays."""

    module = "jax_dataloader"
    packages = ("jax-dataloader",)
    settings = "backend='jax', a batch at once, in the main thread: it has no workers"

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        import jax_dataloader

        class Items(jax_dataloader.Dataset):  # type: ignore[misc,name-defined]
            def __len__(self) -> int:
                return len(task.data)

            def __getitem__(self, index: Any) -> Any:
                items = [task.data[int(number)] for number in index]
                return make_batch(task, items, [random.getrandbits(32) if task.random else None for _ in items])

        loader = jax_dataloader.DataLoader(Items(), "jax", batch_size=task.batch, shuffle=False, drop_last=True)
        yield itertools.chain.from_iterable(map(iter, itertools.repeat(loader)))
