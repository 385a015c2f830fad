"""Items: how much a loader adds to an item that costs almost nothing."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.sharedctypes import RawArray
from types import MappingProxyType
from typing import Any

import numpy as np

from . import peers, workloads
from .accounts import Window
from .consume import throughput
from .harness import PEAK, Experiment, Goal, Metric, target_case
from .peers import Chosen

GOAL_RATE = Goal(at_least=0.4)
GOAL_CPU = Goal(at_most=4.0)


def experiments(
    subjects: Sequence[Chosen], folder: str, warm_s: float, window_s: float, memory: bool = False
) -> list[Experiment]:
    """Batches of 64 and of 1024 items, at the default depth and with room for more batches ahead.

    `folder` is for what a loader must write first.
    """
    metrics = (
        Metric("items_per_s", "items/s", GOAL_RATE, limit_case="limit"),
        Metric("cpu_us_per_item", "CPU µs/item, all processes", GOAL_CPU),
        *([PEAK] if memory else []),
    )
    times = {"warm_s": warm_s, "window_s": window_s}
    result: list[Experiment] = []
    for batch, depth in ((64, 3), (64, 8), (1024, 3)):
        limit = target_case("limit", "benchmarks.items:limit", memory=memory, batch=batch, workers=2, **times)
        cases, left_out = peers.cases(
            subjects,
            "items",
            "benchmarks.items:loader",
            env={workloads.FOLDER: folder},
            memory=memory,
            batch=batch,
            workers=2,
            depth=depth,
            **times,
        )
        title = f"items: (8, 8, 3) uint8 and an int32, batch {batch}, 2 workers, depth {depth}"
        result.append(Experiment(f"items-{batch}-depth-{depth}", title, (limit, *cases), metrics, left_out=left_out))
    return result


def loader(
    subject: str, module: str | None, batch: int, workers: int, depth: int, warm_s: float, window_s: float
) -> dict[str, Any]:
    """A loader."""
    task = workloads.small(batch, depth=depth)
    assert task.workers == workers
    return throughput(task, subject, module, warm_s, window_s)


def limit(batch: int, workers: int, warm_s: float, window_s: float) -> dict[str, Any]:
    """The loader function alone, called in a bare loop by as many processes as there are workers."""
    context = multiprocessing.get_context("spawn")
    counts = RawArray("q", workers)
    processes = [context.Process(target=bare_loop, args=(counts, i, batch), daemon=True) for i in range(workers)]
    for process in processes:
        process.start()
    while not all(counts):
        time.sleep(0.01)
    time.sleep(warm_s)
    window, before = Window(), sum(counts)
    time.sleep(window_s)
    items = sum(counts) - before
    usage = window.close()
    for process in processes:
        process.terminate()
        process.join()
    return usage.per_item(items)


def bare_loop(counts: Any, index: int, batch: int) -> None:
    """Load items for ever, each to its row of one batch; the rows' views are made once."""
    task = workloads.small(batch)
    arrays = {name: np.empty((batch, *shape), dtype) for name, (shape, dtype) in task.arrays.items()}
    rows = [MappingProxyType({name: array[i, ...] for name, array in arrays.items()}) for i in range(batch)]
    load, size = workloads.load_small, len(task.data)
    for start in itertools.cycle(range(0, size - batch + 1, batch)):
        for data, row in zip(range(start, start + batch), rows, strict=True):
            load(data, row, 0)
        counts[index] += batch
