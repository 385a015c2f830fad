"""Stages: what it costs that a loader measures where its time goes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from statistics import median
from typing import Any
from unittest.mock import patch

from .harness import Experiment, Goal, Metric, target_case
from .workloads import SMALL_ITEMS, load_small

BATCH = 64
BLOCK = 64
"""Batches between two looks at the clock: several of those that are measured in full are among them."""
UNMEASURED = 10
BLOCKS = 400


def experiments() -> list[Experiment]:
    """The same loader with its clock and with hooks that do nothing, in turns in one process."""
    metrics = (
        Metric("batch_us", "µs a batch"),
        Metric("limit_us", "µs: limit, hooks that do nothing"),
        Metric("measuring_us", "µs of it for measuring"),
        Metric("of_limit", "of the limit", Goal(at_most=1.01)),
    )
    cases = [
        target_case("inline", "benchmarks.stages:measure", judged=True, executor="inline"),
        target_case("process", "benchmarks.stages:measure", executor="process"),
    ]
    title = f"stages: what measuring costs, batch {BATCH} of tiny items, processor time of the main process"
    return [Experiment("stages", title, tuple(cases), metrics)]


class Unmeasured:
    """Stands in the place of a loader's clock: has its hooks, none of which does anything."""

    def __init__(self, workers: int) -> None:
        self.trace = self.note = self.lent = None

    def timed(self, plan: Callable[[int], Any]) -> Callable[[int], Any]:
        return plan

    def nothing(self, *args: Any, **more: Any) -> int:
        return 0

    clock = enter = wait = waited = leave = look = sent = result = dispatched = placed = nothing
    dropped = gone = lost = ready = copied = retired = close = nothing


def measure(executor: str) -> dict[str, Any]:
    """Blocks of batches, by turns with and without."""
    from hydrax_gpu import DataGroup, Dataloader

    def loader(stack: ExitStack) -> Iterator[Any]:
        arrays = {"image": ((8, 8, 3), "uint8", "uint8"), "label": ((), "int32", "int32")}
        group = DataGroup(BATCH, range(SMALL_ITEMS), loader_arrays=arrays)
        return stack.enter_context(Dataloader(load_small, group, executor=executor, loader_count=1))

    def block(batches: Iterator[Any]) -> float:
        begin = time.process_time_ns()
        for batch in islice(batches, BLOCK):
            del batch
        return (time.process_time_ns() - begin) / 1e3 / BLOCK

    with ExitStack() as stack:
        with patch("hydrax_gpu.loader.StageClock", Unmeasured):
            limit = loader(stack)
        measured = loader(stack)
        pairs: list[tuple[float, float]] = []
        gc.collect()
        gc.freeze()
        for number in range(UNMEASURED + BLOCKS):
            if number % 2:
                pair = block(measured), block(limit)
            else:
                pair = tuple(reversed((block(limit), block(measured))))
            if number >= UNMEASURED:
                pairs.append(pair)
    return {
        "batch_us": median(ours for ours, _ in pairs),
        "limit_us": median(theirs for _, theirs in pairs),
        "measuring_us": median(ours - theirs for ours, theirs in pairs),
        "of_limit": median(ours / theirs for ours, theirs in pairs),
    }
