"""Autotune: `loader_count="auto"` and `depth="auto"` beside all fixed numbers of workers and slots."""

from __future__ import annotations

import select
import time
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np

from .harness import Experiment, Goal, Metric, target_case

BATCH = 8
WORKERS = (1, 2, 4, 8)
DEPTHS = (3, 8)
SOURCES = {
    "waiting": {"wait_ms": 5.0},
    "processor": {"work_ms": 2.0},
    "consumer": {"work_ms": 0.2, "step_ms": 10.0},
    "waiting, consumer": {"wait_ms": 5.0, "step_ms": 10.0},
}
"""What an item takes, without a processor or on one, and what the loop takes for itself."""
MOST_BATCHES = 2000
"""By then the choice has to be made."""
WINDOW_S = 0.7


class Source:
    """A loader function that waits, or computes, for so long."""

    def __init__(self, wait_ms: float, work_ms: float) -> None:
        self.wait_ms = wait_ms
        self.work_ms = work_ms

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        if self.wait_ms:
            select.select([], [], [], self.wait_ms / 1000)
        end = time.thread_time_ns() + int(self.work_ms * 1e6)  # its own time: the same work, however many share a core
        value = np.full(256, item, "float32")
        while time.thread_time_ns() < end:
            value = np.sqrt(value)
        arrays["x"][...] = value


def experiments() -> list[Experiment]:
    """A case for each source; all loaders of a source are measured in one process, by turns."""
    metrics = (
        Metric("rate", "batches/s"),
        Metric("of_best", "of the best fixed setting", Goal(at_least=0.95)),
        Metric("of_worst", "of the worst"),
        Metric("batches_to_rest", "batches until it was chosen", Goal(at_most=600.0)),
        Metric("seconds_to_rest", "s until then"),
        Metric("workers", "workers chosen"),
        Metric("depth", "slots chosen"),
        Metric("best_workers", "workers of the best"),
        Metric("best_depth", "slots of the best"),
    )
    cases = [
        target_case(name, "benchmarks.autotune:measure", judged=True, timed=False, **settings)
        for name, settings in SOURCES.items()
    ]
    fixed = f"{', '.join(map(str, WORKERS))} workers x {' and '.join(map(str, DEPTHS))} slots"
    return [Experiment("autotune", f"autotune: 'auto' beside {fixed}", tuple(cases), metrics)]


def measure(wait_ms: float = 0.0, work_ms: float = 0.0, step_ms: float = 0.0, rounds: int = 5) -> dict[str, Any]:
    """Lets a loader tune itself until it rests, and measures its choice beside all fixed settings, by turns.

    By turns, because machines are not the same for minutes; and what it has chosen as fixed numbers, because a loader
    from which nothing is taken for most of the time has another consumer, and chooses for that one. Loaders that wait
    for their turn do nothing: their slots are full.
    """
    from hydrax_gpu import DataGroup, Dataloader

    source = Source(wait_ms, work_ms)
    group = DataGroup(BATCH, range(1 << 20), loader_arrays={"x": ((256,), "float32", "float32")})

    def take(loader: Any, seconds: float, most: int = 1 << 30) -> float:
        """Takes batches for that long, or so many; how many came a second."""
        begin, taken = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds and taken < most:
            next(loader)
            if step_ms:
                select.select([], [], [], step_ms / 1000)
            taken += 1
        return taken / (time.perf_counter() - begin)

    with Dataloader(source, group, loader_count="auto", depth="auto") as auto:
        begin, batches = time.perf_counter(), 0
        while batches < MOST_BATCHES and not _tuning(auto).settled:
            take(auto, 60.0, 10)
            batches += 10
        to_rest, chosen = time.perf_counter() - begin, _tuning(auto)
    ours = chosen.workers, chosen.depth
    fixed = [(workers, depth) for workers in WORKERS for depth in DEPTHS]
    with ExitStack() as stack:
        loaders: dict[tuple[int, int], Any] = {
            setting: stack.enter_context(Dataloader(source, group, loader_count=setting[0], depth=setting[1]))
            for setting in dict.fromkeys([ours, *fixed])
        }
        rates: dict[tuple[int, int], list[float]] = {setting: [] for setting in loaders}
        for _ in range(rounds):
            for setting, loader in loaders.items():
                take(loader, 60.0, 3 * setting[1])  # those that were loaded meanwhile do not count
                rates[setting].append(take(loader, WINDOW_S))
    typical = {setting: median(rates[setting]) for setting in loaders}
    best, worst = max(fixed, key=typical.__getitem__), min(fixed, key=typical.__getitem__)
    return {
        "rate": typical[ours],
        "of_best": median(our / their for our, their in zip(rates[ours], rates[best], strict=True)),
        "of_worst": median(our / their for our, their in zip(rates[ours], rates[worst], strict=True)),
        "batches_to_rest": float(batches),
        "seconds_to_rest": to_rest,
        "workers": float(ours[0]),
        "depth": float(ours[1]),
        "best_workers": float(best[0]),
        "best_depth": float(best[1]),
        "why": chosen.why,
        "fixed": {f"{workers} x {depth}": rate for (workers, depth), rate in typical.items()},
    }


def _tuning(loader: Any) -> Any:
    return loader.report().tuning
