"""Start: from the start of the process to its first batch, and what the workers weigh."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from . import peers, workloads
from .accounts import family, maps_jax, memory
from .consume import take, to_jax
from .harness import PEAK, Case, Experiment, Goal, Metric
from .peers import Chosen

SCRIPTS = {"hydrax_gpu": "benchmarks.scripts.first_batch_hydrax_gpu", "hydrax": "benchmarks.scripts.first_batch_hydrax"}
"""Whole scripts as a user would write them. Other loaders are opened as they are for `items`."""
FLOOR = "benchmarks.scripts.first_batch_floor"
SETTLE_S = 1.0


def experiments(subjects: Sequence[Chosen], folder: str, memory: bool = False) -> list[Experiment]:
    """One experiment; the scripts name their library themselves, as a user's script does."""
    settings = {"batch": 64, "workers": 2}
    cases = [Case("limit", FLOOR, settings={"batch": 64})]
    env = {workloads.FOLDER: folder}
    measured, left_out = peers.cases(
        subjects, "items", "benchmarks.startup:first_batch", env=env, memory=memory, **settings
    )
    for case in measured:
        if script := SCRIPTS.get(case.name):
            cases.append(
                Case(
                    case.name, script, (), settings, case.judged, python=case.python, memory=case.memory, peer=case.peer
                )
            )
        else:
            cases.append(case)
    metrics = (
        Metric("from_start_s", "s: process start to first batch", Goal(at_most=1.25), limit_case="limit"),
        Metric("worker_pss_mb", "MB: PSS of the largest worker", Goal(at_most=30.0)),
        Metric("worker_own_mb", "MB: of it, private"),
        Metric("workers_with_jax", "workers that have imported jax", Goal(at_most=0)),
        Metric("close_s", "s: leaving the with block"),
        *([PEAK] if memory else []),
    )
    title = "startup: batch 64 of small items, 2 workers; limit: import, one batch by NumPy, to the device"
    return [Experiment("startup", title, tuple(cases), metrics, left_out=left_out)]


def first_batch(subject: str, module: str | None, batch: int, workers: int) -> dict[str, Any]:
    """A loader's first batch on the device, then what the processes weigh that it has started.

    JAX is imported when the loader has been opened: its workers start meanwhile.
    """
    task = workloads.small(batch)
    assert task.workers == workers
    loader = peers.make(subject, module)
    with loader.open(task) as batches:
        import jax

        first = next(batches)
        arrays = jax.block_until_ready(to_jax(loader, first))
        done_at = time.monotonic()
        task.check(arrays)
        loader.after(first)
        del first, arrays
        take(loader, batches, SETTLE_S, jax=True)
        started = [stat.pid for stat in family(os.getpid(), session=False)]
        weights = [memory(pid) for pid in started]
        with_jax = sum(map(maps_jax, started))
        closing = time.monotonic()
    result: dict[str, Any] = {"close_s": time.monotonic() - closing, "done_at": done_at, "workers": weights}
    # a loader of threads has none, and no memory of workers either
    if weights:
        result["workers_with_jax"] = with_jax
        result |= {f"worker_{key}": max(weight[key] for weight in weights) for key in ("pss_mb", "own_mb", "rss_mb")}
    return {**result, "versions": loader.versions(), "settings_of_peer": loader.settings}
