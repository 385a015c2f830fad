"""Ratios that people write, and the order that they get."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hydrax_gpu._plan.schedule import MAX_PERIOD, InterleavedSchedule, WeightedSchedule, exact_ratios


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.3], ["7/10", "3/10"]),
        ([7, 3], ["7/10", "3/10"]),
        ([1 / 3, 2 / 3], ["1/3", "2/3"]),
        ([0.1 + 0.2, 0.7], ["3/10", "7/10"]),
        ([1.0, 1.0, 1.0], ["1/3", "1/3", "1/3"]),
        ([Fraction(1, 7), 1 - 1 / 7], ["1/7", "6/7"]),
        ([0.123, 0.877], ["123/1000", "877/1000"]),
        ([1e-9], ["1"]),
    ],
)
def test_ratios_are_what_was_meant(weights: list[float | Fraction], expected: list[str]) -> None:
    assert list(map(str, exact_ratios(weights))) == expected


def test_ratios_without_a_small_denominator_are_rounded_and_no_group_vanishes() -> None:
    weights = [3.14159265358979, 2.71828182845905, 1e-9]
    ratios = exact_ratios(weights)
    assert sum(ratios) == 1
    assert ratios[2] == Fraction(1, MAX_PERIOD)
    for ratio, weight in zip(ratios, weights, strict=True):
        assert abs(float(ratio) - weight / sum(weights)) < 3 / MAX_PERIOD
    schedule = WeightedSchedule([10, 10, 10], weights)
    groups = [schedule.locate(step)[0] for step in range(MAX_PERIOD)]
    assert [Fraction(groups.count(group), MAX_PERIOD) for group in range(3)] == list(ratios)


@pytest.mark.parametrize("weight", [0, -1, 0.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"finite number above 0, got .* for group 1. Leave a group out"):
        exact_ratios([1, weight])


def test_seven_to_three_stays_what_it_is() -> None:
    schedule = WeightedSchedule([100, 100], [0.7, 0.3])
    assert "".join(str(schedule.locate(step)[0]) for step in range(20)) == GOLDEN * 2


GOLDEN = "0100010010"


def test_interleaving_compares_exactly_where_floats_would_not() -> None:
    # 10**17 and 10**17 + 1 are one float: the longer group is the less used one after equally many batches.
    schedule = InterleavedSchedule([10**17, 10**17 + 1])
    middle = 10**17
    assert schedule.locate(middle + 1)[0] != schedule.locate(middle)[0]
    assert [schedule.locate(step)[0] for step in range(5)] == [0, 1, 1, 0, 1]
