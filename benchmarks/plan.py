"""Plan: what the order of the data costs, for any number of items and at any step."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from .harness import Experiment, Goal, Metric, target_case

LENGTHS = (10**6, 10**9, 10**10)
BATCH = 64
NEAR, FAR = 10, 10**6


def experiments() -> list[Experiment]:
    """Shuffled batches of 64 from ten thousand to ten thousand million items; the smallest is the limit."""
    metrics = (
        Metric("batch_us", "µs a batch, in sequence", Goal(at_most=2.0), limit_case="limit"),
        Metric("near_us", f"µs to the first batch from step {NEAR}"),
        Metric("far_of_near", f"from step {FAR:,}, of that from step {NEAR}", Goal(at_most=2.0)),
    )
    cases = [target_case("limit", "benchmarks.plan:measure", length=10**4)]
    cases += [target_case(f"{n:.0e} items", "benchmarks.plan:measure", judged=True, length=n) for n in LENGTHS]
    return [Experiment("plan", f"plan: shuffled batches of {BATCH}, items and seeds", tuple(cases), metrics)]


def measure(length: int) -> dict[str, Any]:
    """Walk, and enter in the middle."""
    from hydrax_gpu._plan import GroupPlan, Plan

    def plan() -> Plan:
        group = GroupPlan(
            length=length,
            batch_size=BATCH,
            seed=0,
            shuffle_first=True,
            shuffle_later="itemwise",
            remainder="drop",
        )
        return Plan([group])

    def enter(step: int) -> float:
        fresh = plan()
        begin = time.perf_counter()
        fresh.at(fresh.position_of_step(step))
        return 1e6 * (time.perf_counter() - begin)

    walked = plan()
    for position in range(2_000):
        walked.at(position)
    begin = time.perf_counter()
    for position in range(2_000, 22_000):
        walked.at(position)
    batch = 1e6 * (time.perf_counter() - begin) / 20_000
    pairs = [(enter(NEAR), enter(FAR)) for _ in range(50)]
    return {
        "batch_us": batch,
        "near_us": median(near for near, _ in pairs),
        "far_of_near": median(far for _, far in pairs) / median(near for near, _ in pairs),
    }
