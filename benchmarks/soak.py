"""Soak: a million batches of next to nothing, with faults; what a loader holds at the end is what it held early on."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from . import workloads
from .accounts import family, memory
from .harness import Experiment, Goal, Metric, target_case

BATCH = 4
ITEMS = 1_000
WORKERS = 2
LOOKS = 40
"""How often it is looked at what is held; the second fifth of these is compared with the last."""


def experiments(batches: int) -> list[Experiment]:
    """Each executor, and both deliveries; a tenth of the batches where one batch costs ten times as much."""
    metrics = (
        Metric("grown_mb", "MB that the main process's memory (RSS) grew by", Goal(at_most=2.0)),
        Metric("workers_grown_mb", "MB that a worker's own memory grew by", Goal(at_most=1.0)),
        Metric("fds_grown", "file descriptors more", Goal(at_most=0.0)),
        Metric("threads_grown", "threads more", Goal(at_most=0.0)),
        Metric("blocks_grown", "blocks more that Python has allocated", Goal(at_most=2000.0)),
        Metric("slots_stuck", "slots with the batch that they had at the look before", Goal(at_most=0.0)),
        Metric("batches", "batches handed out"),
        Metric("dropped", "batches dropped for bad items"),
        Metric("deaths", "workers killed and replaced"),
        Metric("rss_mb", "MB of RSS at the end"),
        Metric("batches_per_s", "batches/s"),
    )

    def case(executor: str, delivery: str, share: int = 1) -> Any:
        settings = {"executor": executor, "delivery": delivery, "batches": batches // share}
        return target_case(f"{executor} {delivery}", "benchmarks.soak:measure", judged=True, timed=False, **settings)

    cases = (case("process", "copy"), case("process", "alias", 4), case("thread", "copy", 4), case("inline", "copy", 4))
    title = f"soak: {batches:,} batches of {BATCH} (the first; the others a quarter), with bad items and killed workers"
    return [Experiment("soak", title, cases, metrics)]


@dataclass
class Samples:
    """What was held at each look, and what of it can be said at the end."""

    values: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    generations: list[int] = field(default_factory=list[int])

    def take(self, slots: Any) -> None:
        """Look at this process, its workers, and the slots of the loader."""
        gc.collect()
        workers = [memory(stat.pid)["own_mb"] for stat in family(os.getpid(), session=False)]
        generations = [0 if slots.state(slot).name == "FREE" else slots.generation(slot) for slot in range(len(slots))]
        found = {
            "rss_mb": memory(os.getpid())["rss_mb"],
            "fds": len(os.listdir("/proc/self/fd")) - 1,  # without the one that lists them
            "threads": len(os.listdir("/proc/self/task")),
            "blocks": sys.getallocatedblocks(),
            "workers_mb": median(workers) if workers else 0.0,
            "slots_stuck": sum(a == b != 0 for a, b in zip(generations, self.generations, strict=False)),
        }
        self.generations = generations
        for name, value in found.items():
            self.values.setdefault(name, []).append(value)

    def grown(self, name: str) -> float:
        """The median of the last fifth of the looks, less that of the second fifth."""
        values = self.values[name]
        fifth = len(values) // 5
        return median(values[-fifth:]) - median(values[fifth : 2 * fifth])


def load(item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
    """An item that costs almost nothing; some are broken, and some have something to tell."""
    if item == 13:
        raise ValueError(f"item {item} is broken")
    workloads.load_small(item, arrays, seed)
    return {"note": "x" * item} if item % 50 == 0 else None


def measure(executor: str, delivery: str, batches: int, looks: int = LOOKS) -> dict[str, Any]:
    """Runs a loader for so many batches and looks from time to time at what is held.

    Between two looks a worker is killed, and batches are taken until there is another in its place: more than `batches`
    where that takes longer.
    """
    import logging

    from hydrax_gpu import DataGroup, Dataloader, ErrorPolicy
    from hydrax_gpu._engine import running_streams

    logging.getLogger("hydrax_gpu").setLevel(logging.ERROR)  # the kills are meant
    arrays = {"image": ((8, 8, 3), "uint8", "uint8"), "label": ((), "int32", "int32")}
    depth, samples = 4, Samples()
    loader = Dataloader(
        load, DataGroup(BATCH, range(ITEMS), loader_arrays=arrays), executor=executor, delivery=delivery, depth=depth,
        loader_count=WORKERS, end_at=None, on_error=ErrorPolicy(restarts=1_000_000),
    )  # fmt: skip
    every = batches // looks
    number = step = killed = 0
    begin = time.perf_counter()
    with loader:
        slots = running_streams()[0].runner.core.slots
        for batch in loader:
            del batch
            number, step = number + 1, step + 1
            if step == every // 2 and executor == "process":
                killed = loader.report().workers[-1].pid
                os.kill(killed, signal.SIGKILL)
            if step < every:
                continue
            if killed in (pids := [worker.pid for worker in loader.report().workers]) or len(pids) < WORKERS:
                time.sleep(0.002)  # what is waited for needs the processor
                continue
            samples.take(slots)
            step, looks = 0, looks - 1
            if not looks:
                break
        seconds = time.perf_counter() - begin
        report = loader.report()
    return {
        "grown_mb": samples.grown("rss_mb"),
        "workers_grown_mb": samples.grown("workers_mb"),
        "fds_grown": samples.grown("fds"),
        "threads_grown": samples.grown("threads"),
        "blocks_grown": samples.grown("blocks"),
        "slots_stuck": max(samples.values["slots_stuck"]),
        "rss_mb": samples.values["rss_mb"][-1],
        "batches": number,
        "dropped": report.dropped_batches,
        "deaths": len(report.worker_deaths),
        "batches_per_s": number / seconds,
        "samples": samples.values,
    }
