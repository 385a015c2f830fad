"""Google's Grain: `MapDataset` in worker processes, and in threads.

Settings: Grain's guide advises `mp_prefetch` for transformations in Python that compute, and reader threads for those
that wait or release the GIL; both are measured. With processes each worker makes whole batches (`batch` before
`to_iter_dataset`) and has no threads of its own, so that no more items are loaded at once than for the others. With
threads, as many items are read ahead as the other loaders have in their batches.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

from .base import Arrays, Peer, make_item


class Grain(Peer):
    """`MapDataset` in worker processes; random draws are those that Grain gives to each item."""

    module = "grain"
    packages = ("grain",)
    settings = "mp_prefetch(num_workers), whole batches in the workers, no reader threads beside them"
    processes = True

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        import grain
        from absl import flags

        # its worker processes ask for flags of a command line that Grain's own launcher would have parsed
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = grain.MapDataset.source(task.data).seed(0).repeat()
        dataset = dataset.random_map(partial(_draw, task)) if task.random else dataset.map(partial(_plain, task))
        if self.processes:
            dataset = dataset.batch(task.batch).to_iter_dataset(
                grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            )
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=task.workers))
        else:
            options = grain.ReadOptions(num_threads=task.workers, prefetch_buffer_size=task.depth * task.batch)
            dataset = dataset.to_iter_dataset(options).batch(task.batch)
        batches = iter(dataset)
        yield batches
        with suppress(AttributeError):
            batches.close()


class GrainThreads(Grain):
    """The same in threads of this process."""

    settings = "to_iter_dataset(ReadOptions(num_threads, prefetch_buffer_size=depth × batch)), then batch"
    processes = False


def _plain(task: Any, item: Any) -> Arrays:
    return make_item(task, item, None)


def _draw(task: Any, item: Any, generator: np.random.Generator) -> Arrays:
    return make_item(task, item, int(generator.integers(2**32)))
