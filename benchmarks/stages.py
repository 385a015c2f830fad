"""Stages: what it costs that a loader measures where its time goes, and what a trace costs."""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from math import ceil, sqrt
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from hydrax_gpu._engine.stages import StageClock

from .bare import switchable
from .harness import Experiment, Goal, Metric, target_case
from .workloads import SMALL_ITEMS, load_small

BATCH = 64
BLOCK = 64
"""Batches between two looks at the clock."""
TRACED_BLOCK = 512
"""The same with a trace, which is written after so many events: several times in a block."""
BATCHES = 60_000
"""All that are taken for a case, to warm up included."""
NEVER = 1 << 40


def experiments() -> list[Experiment]:
    """The same loader as it is and without what measures it, in turns in one process."""
    metrics = (
        Metric("bare_us", "µs a batch, not measured"),
        Metric("passing_us", "µs more for one that is passed over"),
        Metric("full_us", "µs more for one that is measured in full"),
        Metric("measuring_us", "µs more on average"),
        Metric("of_limit", "of one that is not measured", Goal(at_most=1.01)),
        Metric("trace_us", "µs more with a trace"),
        Metric("bytecodes", "Python instructions a batch, not measured"),
        Metric("bytecodes_more", "more for one that is passed over"),
    )
    cases = [
        target_case("unmeasured", "benchmarks.stages:measure", executor="inline", measured=False),
        target_case("inline", "benchmarks.stages:measure", judged=True, executor="inline"),
        target_case("process", "benchmarks.stages:measure", executor="process"),
        target_case("inline, counted", "benchmarks.stages:bytecodes"),
        target_case("inline, trace", "benchmarks.stages:traced", executor="inline"),
        target_case("process, trace", "benchmarks.stages:traced", executor="process"),
    ]
    title = f"stages: what measuring costs, batch {BATCH} of tiny items, processor time of the main process"
    return [Experiment("stages", title, tuple(cases), metrics)]


def measure(executor: str, measured: bool = True, batches: int = BATCHES) -> dict[str, Any]:
    """Blocks of batches that are not measured, are passed over, and are all measured in full, in turns.

    Of two loaders one is quicker than the other by more than what is to be found, as their memory lies elsewhere; so it
    is one, whose methods are switched (`bare`). What measuring costs on average is made of both, as the loader chooses
    how many batches it measures in full: hardly a block would have one of these.

    Args:
        executor: of the loader.
        measured: whether it is measured at all; if not, what is found is the error of this measurement.
        batches: how many are taken.
    """
    intervals = {"passing": NEVER, "full": 1}

    def choose(clock: StageClock, mode: str) -> bool:
        clock._every = intervals.get(mode, NEVER)
        return measured and mode != "bare"

    times, every = _blocks(executor, ("bare", *intervals), BLOCK, batches, choose)
    passing, low, high = _difference(times["passing"], times["bare"])
    full, full_low, full_high = _difference(times["full"], times["bare"])
    bare = median(times["bare"])
    measuring = passing + (full - passing) / every
    return {
        "bare_us": bare, "passing_us": passing, "passing_us_95": [low, high],
        "full_us": full, "full_us_95": [full_low, full_high],
        "every": every, "measuring_us": measuring, "of_limit": 1 + measuring / bare,
    }  # fmt: skip


def traced(executor: str, batches: int = BATCHES) -> dict[str, Any]:
    """Blocks of batches that are not measured, and that are written to a trace, in turns."""
    from hydrax_gpu.trace import Trace

    with tempfile.TemporaryDirectory(prefix="hydrax-benchmark-") as folder:
        trace = Trace(Path(folder) / "trace.json", limit_bytes=1 << 40)
        trace.open({"executor": executor, "workers": 1, "depth": 3, "cores": 1})

        def choose(clock: StageClock, mode: str) -> bool:
            clock._every = 1
            clock.trace = trace if mode == "trace" else None
            return mode == "trace"

        times, _ = _blocks(executor, ("bare", "trace"), TRACED_BLOCK, batches, choose)
        trace.close()
        size = trace.path.stat().st_size
    more, low, high = _difference(times["trace"], times["bare"])
    bare = median(times["bare"])
    taken = TRACED_BLOCK * len(times["trace"])
    return {
        "bare_us": bare, "trace_us": more, "trace_us_95": [low, high], "trace_us_per_item": more / BATCH,
        "of_limit": 1 + more / bare, "bytes_per_batch": size / taken,
    }  # fmt: skip


def bytecodes(batches: int = 200) -> dict[str, Any]:
    """Instructions of Python's machine for a batch that is not measured, and how many more when it is passed over.

    An inline loader. These numbers are the same on every machine, however busy it is; those in C are not counted.
    """
    counts = {"bare": 0, "passing": 0}

    def choose(clock: StageClock, mode: str) -> bool:
        clock._every = NEVER
        return mode == "passing"

    def counted(mode: str, take: Callable[[], None]) -> None:
        def trace(frame: Any, event: str, _: Any) -> Any:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            counts[mode] += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            take()
        finally:
            sys.settrace(before)

    _blocks("inline", tuple(counts), batches, 4 * batches, choose, counted)  # two blocks of each
    bare, passing = (counts[mode] / (2 * batches) for mode in ("bare", "passing"))
    return {"bytecodes": bare, "bytecodes_more": passing - bare, "of_limit": passing / bare}


def _blocks(
    executor: str,
    modes: Sequence[str],
    block: int,
    batches: int,
    choose: Callable[[StageClock, str], bool],
    watch: Callable[[str, Callable[[], None]], None] = lambda mode, take: take(),
) -> tuple[dict[str, list[float]], int]:
    """Processor time a batch of this process in µs, by mode and round, and every how many batches would be measured.

    Args:
        executor: of the loader.
        modes: what a round has a block each of, in any order.
        block: batches in a block.
        batches: all that are taken.
        choose: prepares the loader's clock for a mode, and says whether it is to be told anything.
        watch: calls the function that takes the batches of a block.
    """
    from hydrax_gpu import DataGroup, Dataloader

    arrays = {"image": ((8, 8, 3), "uint8", "uint8"), "label": ((), "int32", "int32")}
    group = DataGroup(BATCH, range(SMALL_ITEMS), loader_arrays=arrays)
    plans: list[Callable[[int], Any]] = []
    timed = StageClock.timed
    orders = random.Random(0)

    def switched(clock: StageClock, plan: Callable[[int], Any]) -> Callable[[int], Any]:
        plans.extend([plan, timed(clock, plan)])
        return lambda position: plans[-1](position)

    with (
        patch.object(StageClock, "timed", switched),
        switchable() as switch,
        Dataloader(load_small, group, executor=executor, loader_count=1) as loader,
    ):

        def take(number: int) -> None:
            for batch in islice(loader, number):
                del batch

        clock = loader._stream.runner.stages
        plain, measuring = plans
        take(block)
        # As it would be by itself, after a second at this speed: nothing is to change it any more.
        before, start = time.process_time_ns(), clock.batches
        take(4 * block)
        period = (time.process_time_ns() - before) / (clock.batches - start)
        from hydrax_gpu._engine.sampling import interval
        from hydrax_gpu._engine.stages import _cost

        every = interval(period, _cost())
        clock._next_interval = lambda now, last: clock._recent.append(clock._snapshot(now))

        def one(mode: str) -> float:
            on = choose(clock, mode)
            switch(on)
            clock.ways.clear()  # of batches that will be handed out in another's block
            clock.chunks.clear()
            clock._full, clock._first_wait, clock.due = False, 0, 0
            clock.active = clock._every == 1
            clock.await_from = 0 if clock.active else NEVER
            plans[-1] = measuring if on else plain
            begin = time.process_time_ns()
            watch(mode, lambda: take(block))
            return (time.process_time_ns() - begin) / 1e3 / block

        times: dict[str, list[float]] = {mode: [] for mode in modes}
        gc.collect()
        gc.freeze()
        gc.disable()  # or it would come in some blocks, and not in others
        for number in range(max(2, batches // (block * len(modes)))):
            for mode in orders.sample(modes, len(modes)):
                taken = one(mode)
                if number:
                    times[mode].append(taken)
            gc.collect(1)
        gc.enable()
        clock.trace = None
        switch(True)
    return times, every


def _difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Median of the differences in the same round, and between what it lies with a probability of 0.95.

    The bounds are those of the sign test, which takes nothing for granted about how the differences are spread.
    """
    pairs = sorted(ours - theirs for ours, theirs in zip(values, others, strict=True))
    away = ceil(0.98 * sqrt(len(pairs)))  # 1.96 standard deviations of how many are below the median
    middle = len(pairs) // 2
    return median(pairs), pairs[max(0, middle - away)], pairs[min(len(pairs) - 1, middle + away)]
