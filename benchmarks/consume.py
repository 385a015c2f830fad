"""The training loop of a benchmark: takes batches, and does nothing with them."""

from __future__ import annotations

import time
from typing import Any

from . import peers
from .accounts import Window
from .peers import Arrays
from .workloads import Task


def throughput(task: Task, subject: str, module: str | None, warm_s: float, window_s: float) -> dict[str, Any]:
    """Items a second and CPU time an item of a loader at full speed, measured after a warm-up.

    Before it, the loader's first epoch is compared with what it must hold.
    """
    loader = peers.make(subject, module)
    with loader.open(task) as batches:
        check_epoch(task, loader, batches)
        take(loader, batches, warm_s, jax=True)
        window = Window()
        taken = take(loader, batches, window_s, jax=True)
        usage = window.close()
        notes = loader.notes()
    return {
        **usage.per_item(taken * task.batch),
        **notes,
        "versions": loader.versions(),
        "settings_of_peer": loader.settings,
    }


def check_epoch(task: Task, loader: Any, batches: Any) -> None:
    """Raise unless the loader's first epoch has each item once, with the right values."""

    def taken() -> Any:
        while True:
            batch = next(batches)
            yield to_jax(loader, batch)
            loader.after(batch)

    task.check_epoch(taken())


def to_jax(loader: Any, batch: Any) -> Arrays:
    """The batch's arrays as JAX's, which is what a training step in JAX takes."""
    arrays = loader.arrays(batch)
    if loader.jax_arrays:
        return arrays
    import jax

    return jax.device_put(arrays)


def take(loader: Any, batches: Any, seconds: float, *, jax: bool = False) -> int:
    """Take batches, and every array of each, for that long; how many. With `jax`, the arrays are JAX's."""
    clock, after = time.perf_counter, loader.after
    arrays = loader.arrays
    if jax and not loader.jax_arrays:
        arrays = lambda batch: to_jax(loader, batch)  # noqa: E731
    taken = 0
    end = clock() + seconds
    while clock() < end:
        batch = next(batches)
        arrays(batch)
        after(batch)
        del batch
        taken += 1
    return taken
