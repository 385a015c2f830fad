"""Bytes: large items that are copied from the page cache; the loader should cost no more than the copy."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import peers, workloads
from .accounts import Window
from .consume import throughput
from .harness import PEAK, Experiment, Goal, Metric, target_case
from .peers import Chosen

BATCH = 32


def experiments(
    subjects: Sequence[Chosen], warm_s: float, window_s: float, file: Path, memory: bool = False
) -> list[Experiment]:
    """1.5 MiB an item, batch 32, two workers, depth 3. `file` holds the items."""
    settings = {"batch": BATCH, "workers": 2, "warm_s": warm_s, "window_s": window_s}
    env = {workloads.LARGE_FILE: str(file), workloads.FOLDER: str(file.parent)}
    cases = [
        target_case("limit", "benchmarks.large:limit", env=env, memory=memory, buffers=1, **settings),
        target_case("3 buffers", "benchmarks.large:limit", env=env, memory=memory, buffers=3, **settings),
    ]
    loaders, left_out = peers.cases(
        subjects, "bytes", "benchmarks.large:loader", env=env, memory=memory, depth=3, **settings
    )
    metrics = (
        Metric("items_per_s", "items/s", Goal(at_least=0.9), limit_case="limit"),
        Metric("cpu_us_per_item", "CPU µs/item, all processes"),
        Metric("gb_per_s", "GB/s"),
        *([PEAK] if memory else []),
    )
    title = "bytes: 512 × 1024 × 3 uint8 from the page cache, batch 32, 2 workers, depth 3"
    return [Experiment("bytes", title, (*cases, *loaders), metrics, left_out=left_out)]


def loader(
    subject: str, module: str | None, batch: int, workers: int, depth: int, warm_s: float, window_s: float
) -> dict[str, Any]:
    """A loader."""
    task = workloads.large(batch)
    assert (task.workers, task.depth) == (workers, depth)
    return _with_bytes(throughput(task, subject, module, warm_s, window_s))


def limit(batch: int, workers: int, buffers: int, warm_s: float, window_s: float) -> dict[str, Any]:
    """Copy the same items into one batch that is used again and again, each thread its share of the rows.

    With several buffers they are used in turn, as a loader uses its slots: less of them is still in a cache.
    """
    items = workloads.large_items()
    copies = [np.empty((batch, *workloads.LARGE_SHAPE), np.uint8) for _ in range(buffers)]
    counts, stop = [0] * workers, threading.Event()
    share = batch // workers

    def copy(index: int) -> None:
        rows, mine = range(index * share, (index + 1) * share), itertools.cycle(copies)
        while not stop.is_set():
            for start in range(0, len(items), batch):
                out = next(mine)
                for row in rows:
                    np.copyto(out[row], items[start + row])
                    counts[index] += 1

    threads = [threading.Thread(target=copy, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    while min(counts) < len(items) // workers:
        time.sleep(0.01)
    time.sleep(warm_s)
    window, before = Window(), sum(counts)
    time.sleep(window_s)
    done = sum(counts) - before
    usage = window.close()
    stop.set()
    for thread in threads:
        thread.join()
    return _with_bytes(usage.per_item(done))


def _with_bytes(result: dict[str, float]) -> dict[str, Any]:
    return {**result, "gb_per_s": result["items_per_s"] * float(np.prod(workloads.LARGE_SHAPE)) / 1e9}
