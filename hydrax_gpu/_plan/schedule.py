"""Which group supplies training step s: three schedules, each with a seek that simulates nothing.

Every schedule answers `locate(step)` with `(group, pass, batch)`: the group, how many times all of its batches were
used before, and the batch's place in the present pass.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import Protocol, final

__all__ = [
    "MAX_PERIOD",
    "InterleavedSchedule",
    "Schedule",
    "SequentialSchedule",
    "WeightedSchedule",
    "exact_ratios",
]

MAX_PERIOD = 65536
"""Steps after which a weighted schedule repeats, at most: the common denominator of the ratios."""

_TOLERANCE = Fraction(1, 10**12)  # Relative. Well above a few roundings of a float, well below what anybody means.


class Schedule(Protocol):
    """A rule that hands training steps to groups."""

    def locate(self, step: int) -> tuple[int, int, int]:
        """`(group, pass, batch within the pass)` of a step >= 0. Any order of calls, the next step is the cheapest."""
        ...


@final
class SequentialSchedule:
    """In every epoch, all batches of the first group, then all of the second, and so on."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._ends = list(accumulate(counts))

    def locate(self, step: int) -> tuple[int, int, int]:
        epoch, place = divmod(step, self._ends[-1])
        group = bisect_right(self._ends, place)
        return group, epoch, place - (self._ends[group - 1] if group else 0)


@final
class InterleavedSchedule:
    """In every epoch, each batch is of the group of which the least fraction was used; of equals, the first.

    Batch j of a group of c batches is thus taken in the order of (j / c, group): a merge of arithmetic progressions,
    of which any prefix can be computed.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = list(counts)
        self._total = sum(counts)
        # Where the last call left off: the step after it, and how many batches of each group its epoch has used.
        self._next = 0
        self._used = [0] * len(self._counts)

    def locate(self, step: int) -> tuple[int, int, int]:
        epoch, place = divmod(step, self._total)
        if place == 0:
            self._used = [0] * len(self._counts)
        elif step != self._next:
            self._used = self._used_before(place)
        group = self._least_used()
        batch = self._used[group]
        self._used[group] += 1
        self._next = step + 1
        return group, epoch, batch

    def _least_used(self) -> int:
        # Cross-multiplied: floats would call 3/49 and 3/49 different after unequal roundings, and huge counts equal.
        used, counts = self._used, self._counts
        best = 0
        for group in range(1, len(counts)):
            if used[group] * counts[best] < used[best] * counts[group]:
                best = group
        return best

    def _used_before(self, place: int) -> list[int]:
        # {(j, g): j / c_g < place / total} is a prefix of the order, with sum(ceil(place * c_g / total)) elements:
        # `place` of them or fewer than one a group more. Take those off the end.
        used = [-(-place * count // self._total) for count in self._counts]
        for _ in range(sum(used) - place):
            last = max(
                (group for group, count in enumerate(used) if count),
                key=lambda group: (Fraction(used[group] - 1, self._counts[group]), group),
            )
            used[last] -= 1
        return used


@final
class WeightedSchedule:
    """Groups in exact ratios: after any n steps, group i has had n * ratio_i batches, to within less than one.

    R. Tijdeman: "The chairman assignment problem", Discrete Mathematics 32 (1980). With k groups the distance is at
    most 1 - 1 / (2k - 2). It counts steps of the whole run, not of an epoch, so that the ratios hold across epochs;
    each group goes through its own passes.

    Attributes:
        ratios: the share of each group; they add up to 1.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float | Fraction]) -> None:
        self.ratios = exact_ratios(weights)
        self._counts = list(counts)
        period = self._period = _common_denominator(self.ratios)
        self._shares = [int(ratio * period) for ratio in self.ratios]
        self._groups = _chairmen(self._shares)
        # The schedule is back in its first state after a period, so that a table of one period is all there is to it.
        seen = [0] * len(self._shares)
        self._earlier: list[int] = []  # For each step of the period: batches of the same group before it.
        for group in self._groups:
            self._earlier.append(seen[group])
            seen[group] += 1

    def locate(self, step: int) -> tuple[int, int, int]:
        periods, place = divmod(step, self._period)
        group = self._groups[place]
        passes, batch = divmod(periods * self._shares[group] + self._earlier[place], self._counts[group])
        return group, passes, batch


def exact_ratios(weights: Sequence[float | Fraction]) -> tuple[Fraction, ...]:
    """Weights as fractions that add up to 1 and whose common denominator is at most `MAX_PERIOD`.

    A float stands for the simplest fraction within 1e-12 of it, so that 0.7 and 0.3 are 7/10 and 3/10, and 1/3 is 1/3.
    Only where the common denominator would be larger, the ratios are rounded to multiples of 1 / `MAX_PERIOD`.
    """
    if not 1 <= len(weights) <= MAX_PERIOD:
        raise ValueError(f"weights are for 1 to {MAX_PERIOD} groups, got {len(weights)} of them.")
    simple = [_simplest(index, weight) for index, weight in enumerate(weights)]
    total = sum(simple, Fraction())
    ratios = tuple(weight / total for weight in simple)
    if _common_denominator(ratios) <= MAX_PERIOD:
        return ratios
    # Largest remainders (Hamilton's method), one step set aside for each group: a group must not vanish.
    spare = MAX_PERIOD - len(ratios)
    shares = [1 + int(ratio * spare) for ratio in ratios]
    by_remainder = sorted(range(len(ratios)), key=lambda i: (int(ratios[i] * spare) - ratios[i] * spare, i))
    for index in by_remainder[: MAX_PERIOD - sum(shares)]:
        shares[index] += 1
    return tuple(Fraction(share, MAX_PERIOD) for share in shares)


def _simplest(index: int, weight: float | Fraction) -> Fraction:
    try:
        exact = Fraction(weight)
    except (ValueError, OverflowError, TypeError):
        exact = Fraction(0)
    if exact <= 0:
        raise ValueError(
            f"a weight must be a finite number above 0, got {weight!r} for group {index}. "
            "Leave a group out in place of a weight of 0."
        )
    if isinstance(weight, int | Fraction):
        return exact
    limit = 1
    while True:
        near = exact.limit_denominator(limit)
        if abs(near - exact) <= exact * _TOLERANCE:
            return near
        limit *= 2


def _common_denominator(ratios: Sequence[Fraction]) -> int:
    return lcm(*(ratio.denominator for ratio in ratios))


def _chairmen(shares: Sequence[int]) -> list[int]:
    # Tijdeman's rule as earliest deadline first. With k groups, e = 1 / (2k - 2) and a group of ratio r, its batch j
    # (from 0) may be at step n (from 1) if n * r >= j + e, and must be at the first n with n * r > j + 1 - e at last.
    period = sum(shares)
    if len(shares) == 1:
        return [0] * period
    d = 2 * len(shares) - 2

    def release(group: int, j: int) -> tuple[int, int, int, int]:
        a = shares[group] * d
        earliest = -(-period * (j * d + 1) // a)
        latest = period * ((j + 1) * d - 1) // a + 1
        return earliest, latest, group, j

    waiting = [release(group, 0) for group in range(len(shares))]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    order: list[int] = []
    for step in range(1, period + 1):
        while waiting and waiting[0][0] <= step:
            _, latest, group, j = heapq.heappop(waiting)
            heapq.heappush(ready, (latest, group, j))
        # Never empty: before each choice the k values of n * r - batches add up to 1, so one is at least 1 / k >= e.
        _, group, j = heapq.heappop(ready)
        order.append(group)
        heapq.heappush(waiting, release(group, j + 1))
    return order
