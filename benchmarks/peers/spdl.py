"""Meta's SPDL: a pipeline of threads.

Settings: each thread loads a whole batch into one array, so that nothing is copied together, as SPDL's own image
loaders do; as many threads as items are to be loaded at once; a sink as deep as the others' batches ahead. Batches are
handed over in the order of the source, which the others do too (its default is the order of completion).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .base import Arrays, Peer, make_batch


class Spdl(Peer):
    """`PipelineBuilder` with one stage."""

    module = "spdl.pipeline"
    packages = ("spdl", "spdl_core")
    settings = "threads, a whole batch in each, output_order='input'"

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        from spdl.pipeline import PipelineBuilder

        items = itertools.cycle(task.data)
        source = iter(lambda: list(itertools.islice(items, task.batch)), None)
        builder = PipelineBuilder().add_source(source)
        builder = builder.pipe(partial(_batch, task), concurrency=task.workers, output_order="input")
        pipeline = builder.add_sink(task.depth).build(num_threads=task.workers)
        with pipeline.auto_stop():
            yield iter(pipeline)


def _batch(task: Any, items: list[Any]) -> Arrays:
    return make_batch(task, items, [random.getrandbits(32) if task.random else None for _ in items])
