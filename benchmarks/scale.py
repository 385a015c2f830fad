"""Scale: what the schedule costs at up to 10,000 processes and 10,000 million items, and that their shares are right.

The plan is pure, so the shares of all processes are computed here, one process after the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from .harness import Experiment, Goal, Metric, target_case

LENGTHS = (10**3, 10**4, 10**6, 10**8, 10**10)
HOSTS = (1, 10, 100, 1_000, 10_000)
ROWS = 32
"""Rows of a process, where the global batch has as many for each of them."""
GLOBAL_ROWS = 40_000
"""Rows of a global batch that stays as it is, however many processes share it."""
STATE_LIMIT = 4096


def experiments() -> list[Experiment]:
    """Items and processes, one at a time; and the shares of 10,000 processes against each other."""
    measure_ = "benchmarks.scale:measure"
    cases = [target_case(f"{n:.0e} items", measure_, judged=True, length=n, hosts=1, rows=ROWS) for n in LENGTHS]
    cases += [
        target_case(f"{h:,} hosts", measure_, judged=True, length=10**10, hosts=h, rows=GLOBAL_ROWS) for h in HOSTS
    ]
    cases.append(
        target_case("10,000 hosts, more rows", measure_, judged=True, length=10**10, hosts=10**4, rows=10**4 * ROWS)
    )
    cost = (
        Metric("batch_ms", "ms a global batch"),
        Metric("row_us", "µs a row of it", Goal(at_most=2.0)),
        Metric("share_us", "µs to cut a host's rows out of it"),
        Metric("seek_ms", "ms to the first share from step 1,000,000"),
        Metric("state_bytes", "bytes of the state", Goal(at_most=float(STATE_LIMIT))),
    )
    right = (
        Metric("rows_missing", "rows that no host has", Goal(at_most=0.0)),
        Metric("rows_twice", "rows that two hosts have", Goal(at_most=0.0)),
        Metric("items_twice", "items twice among the batches", Goal(at_most=0.0)),
        Metric("imbalance", "most rows of a host minus fewest", Goal(at_most=0.0)),
    )
    shares = target_case("10,000 hosts", "benchmarks.scale:check", judged=True, length=10**10, hosts=10_000, batches=3)
    return [
        Experiment("scale", "scale: the schedule by items and hosts", tuple(cases), cost),
        Experiment("scale", "scale: all hosts' shares of a few batches", (shares,), right),
    ]


def measure(length: int, hosts: int, rows: int) -> dict[str, Any]:
    """What one host pays for its share of a batch, in CPU time."""
    from hydrax_gpu._plan import Plan, block_of, to_state

    plan = _plan(length, rows)
    host = hosts // 2
    mine = block_of(rows, host, hosts)
    steps = max(5, 20_000 // rows)
    batch = _cpu_us(lambda step: plan.at(step), steps)
    whole = plan.at(0)
    share = _cpu_us(lambda _: whole.of_rows(mine), 200)

    def seek(_: int) -> None:
        fresh: Plan = _plan(length, rows)
        fresh.at(fresh.position_of_step(1_000_000)).of_rows(mine)

    return {
        "row_us": batch / rows,
        "batch_ms": batch / 1000,
        "share_us": share,
        "seek_ms": _cpu_us(seek, 5) / 1000,
        "state_bytes": float(len(json.dumps(to_state(plan, 10**9)))),
    }


def check(length: int, hosts: int, batches: int) -> dict[str, Any]:
    """The shares of all hosts, each computed as that host does."""
    from hydrax_gpu._plan import block_of

    rows = ROWS * hosts
    plan = _plan(length, rows)
    missing = twice = repeated = imbalance = 0
    items: set[int] = set()
    for number in range(batches):
        step = number * (plan.batches_per_epoch // batches)  # all over the epoch
        batch = plan.at(plan.position_of_step(step))
        seen: dict[int, int] = {}
        sizes: list[int] = []
        for host in range(hosts):
            mine = block_of(rows, host, hosts)
            share = batch.of_rows(mine)
            sizes.append(share.rows)
            for row, item in zip(mine, share.indices, strict=True):
                twice += row in seen
                seen[row] = item
        missing += sum(seen.get(row) != item for row, item in enumerate(batch.indices))
        repeated += sum(item in items for item in seen.values())
        items.update(seen.values())
        imbalance = max(imbalance, max(sizes) - min(sizes))
    return {
        "rows_missing": float(missing),
        "rows_twice": float(twice),
        "items_twice": float(repeated + batches * rows - len(items)),
        "imbalance": float(imbalance),
    }


def _plan(length: int, rows: int) -> Any:
    from hydrax_gpu._plan import GroupPlan, Plan

    return Plan([GroupPlan(length, rows, 0, True, "itemwise", "drop")])


def _cpu_us(work: Callable[[int], object], times: int) -> float:
    """Median CPU time of some calls, by fifths: a disturbance is in one of them."""
    part = max(1, times // 5)
    work(0)
    costs: list[float] = []
    for first in range(0, 5 * part, part):
        begin = time.process_time_ns()
        for step in range(first, first + part):
            work(step)
        costs.append((time.process_time_ns() - begin) / part / 1000)
    return median(costs)
