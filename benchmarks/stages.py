"""Stages: what it costs that a loader measures where its time goes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any
from unittest.mock import patch

from hydrax_gpu._stages import Totals

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
        target_case("unmeasured", "benchmarks.stages:measure", executor="inline", measured=False),
        target_case("inline", "benchmarks.stages:measure", judged=True, executor="inline"),
        target_case("process", "benchmarks.stages:measure", executor="process"),
    ]
    title = f"stages: what measuring costs, batch {BATCH} of tiny items, processor time of the main process"
    return [Experiment("stages", title, tuple(cases), metrics)]


class Unmeasured:
    """Stands in the place of a loader's clock: has its hooks, none of which does anything."""

    trace = None
    ways = unsent = chunks = cached = ()
    full = awaited = False
    waits = waited_ns = 0
    look_at = 1
    totals = Totals()

    def nothing(self, *args: Any, **more: Any) -> int:
        return 0

    clock = enter = wait = leave = look = sent = result = dispatched = placed = nothing
    dropped = gone = lost = ready = copied = retired = close = nothing


def measure(executor: str, measured: bool = True) -> dict[str, Any]:
    """Blocks of batches of one loader, by turns with its clock and without.

    Of two loaders one is quicker than the other by more than what is to be measured, as their memory lies elsewhere.

    Args:
        executor: of the loader.
        measured: whether it is measured at all; if not, what is found is the error of this measurement.
    """
    from hydrax_gpu import DataGroup, Dataloader
    from hydrax_gpu._engine import StageClock

    arrays = {"image": ((8, 8, 3), "uint8", "uint8"), "label": ((), "int32", "int32")}
    group = DataGroup(BATCH, range(SMALL_ITEMS), loader_arrays=arrays)
    nothing = Unmeasured()
    plans: list[Callable[[int], Any]] = []
    timed = StageClock.timed

    def switched(clock: StageClock, plan: Callable[[int], Any]) -> Callable[[int], Any]:
        plans.extend([plan, timed(clock, plan)])
        return lambda position: plans[-1](position)

    with (
        patch.object(StageClock, "timed", switched),
        Dataloader(load_small, group, executor=executor, loader_count=1) as loader,
    ):
        runner = loader._stream.runner
        clock = runner.stages
        first, second = plans

        def block(on: bool) -> float:
            on = on and measured
            clock.ways.clear()  # of batches that will be handed out in the other's blocks
            clock.chunks.clear()
            runner.stages, plans[-1] = (clock, second) if on else (nothing, first)
            begin = time.process_time_ns()
            for batch in islice(loader, BLOCK):
                del batch
            spent = time.process_time_ns() - begin
            if not on:
                clock.totals.batches += BLOCK  # or it would take each of its own for twice as slow
            return spent / 1e3 / BLOCK

        pairs: list[tuple[float, float]] = []
        gc.collect()
        gc.freeze()
        for number in range(UNMEASURED + BLOCKS):
            order = (True, False) if number % 2 else (False, True)
            times = {on: block(on) for on in order}
            if number >= UNMEASURED:
                pairs.append((times[True], times[False]))
        runner.stages = clock
    return {
        "batch_us": median(ours for ours, _ in pairs),
        "limit_us": median(theirs for _, theirs in pairs),
        "measuring_us": median(ours - theirs for ours, theirs in pairs),
        "of_limit": median(ours / theirs for ours, theirs in pairs),
        "every": clock._every,
    }
