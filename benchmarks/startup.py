"""Start: from the start of the process to its first batch, and what the workers weigh."""

from __future__ import annotations

from collections.abc import Sequence

from .harness import Case, Experiment, Goal, Metric

SCRIPTS = {"hydrax_gpu": "benchmarks.scripts.first_batch_hydrax_gpu", "hydrax": "benchmarks.scripts.first_batch_hydrax"}
FLOOR = "benchmarks.scripts.first_batch_floor"


def experiments(subjects: Sequence[tuple[str, str | None]]) -> list[Experiment]:
    """One experiment; the scripts name their library themselves, as a user's script does."""
    settings = {"batch": 64, "workers": 2}
    cases = [Case("limit", FLOOR, settings={"batch": 64})]
    for name, _ in subjects:
        if name in SCRIPTS:
            cases.append(Case(name, SCRIPTS[name], settings=settings, judged=name == "hydrax_gpu"))
    metrics = (
        Metric("from_start_s", "s: process start to first batch", Goal(at_most=1.25), limit_case="limit"),
        Metric("worker_pss_mb", "MB: PSS of the largest worker", Goal(at_most=30.0)),
        Metric("worker_own_mb", "MB: of it, private"),
        Metric("workers_with_jax", "workers that have imported jax", Goal(at_most=0)),
        Metric("close_s", "s: leaving the with block"),
    )
    title = "startup: batch 64 of small items, 2 workers; limit: import, one batch by NumPy, to the device"
    return [Experiment("startup", title, tuple(cases), metrics)]
