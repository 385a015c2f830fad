"""Which share of the batches is measured in full, so that measuring costs next to nothing."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from statistics import median

__all__ = ["cost", "interval"]

_SHARE = 0.004
"""Of a batch's time that measuring in full may cost on average. As much again goes into what is counted at each one."""
_COLD = 2
"""Between two batches other code runs; what is measured in a row is that much quicker."""
_REHEARSALS = 16

INTERVALS = (1, 3, 5, 7, 11, 17, 29, 43, 67, 101, 151, 227, 347, 521, 787)
"""Primes, so that what comes at every other or fourth batch is seen as often as it comes."""


def interval(period_ns: float, cost_ns: float) -> int:
    """Every how many batches one is to be measured in full.

    Args:
        period_ns: time from one batch to the next.
        cost_ns: what measuring one in full costs, found by `cost`.
    """
    wanted = _COLD * cost_ns / (_SHARE * max(period_ns, 1.0))
    return INTERVALS[min(bisect_left(INTERVALS, wanted), len(INTERVALS) - 1)]


def cost(batch: Callable[[int], None]) -> float:
    """Nanoseconds that a call of `batch`, which is given 0, 1, 2, …, takes as a median."""
    times: list[int] = []
    for number in range(_REHEARSALS):
        begin = time.perf_counter_ns()
        batch(number)
        times.append(time.perf_counter_ns() - begin)
    return median(times)
