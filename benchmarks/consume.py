"""The training loop of a benchmark: takes batches, and does nothing with them."""

from __future__ import annotations

import time
from typing import Any

from .accounts import Window
from .subjects import make_subject
from .workloads import Task


def throughput(task: Task, subject: str, module: str | None, warm_s: float, window_s: float) -> dict[str, Any]:
    """Items a second and CPU time an item of a loader at full speed, measured after a warm-up."""
    loader = make_subject(subject, module)
    with loader.open(task) as batches:
        batch = next(batches)
        task.check(loader.arrays(batch))
        loader.after(batch)
        del batch
        take(loader, batches, warm_s)
        window = Window()
        taken = take(loader, batches, window_s)
        usage = window.close()
    return usage.per_item(taken * task.batch)


def take(loader: Any, batches: Any, seconds: float) -> int:
    """Take batches, and every array of each, for that long; how many."""
    clock, arrays, after = time.perf_counter, loader.arrays, loader.after
    taken = 0
    end = clock() + seconds
    while clock() < end:
        batch = next(batches)
        arrays(batch)
        after(batch)
        del batch
        taken += 1
    return taken
