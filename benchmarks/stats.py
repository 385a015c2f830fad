"""Medians and spread of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Spread:
    """What is said of a number that was measured several times."""

    median: float
    low: float
    high: float
    quartile_1: float
    quartile_3: float
    runs: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Median, extremes and quartiles. Quartiles lie between the values, as they are all there is."""
    if not values:
        raise ValueError("no values: a median needs at least one")
    low, high = min(values), max(values)
    quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [low, low, low]
    return Spread(median(values), low, high, quarters[0], quarters[2], len(values))


def ratios(values: Sequence[float | None], limits: Sequence[float | None]) -> list[float]:
    """Each value by the limit measured in the same round; rounds in which one of them failed are left out.

    The machine's speed changes from minute to minute, and what both of a round share drops out of their ratio.
    """
    return [v / x for v, x in zip(values, limits, strict=False) if v is not None and x is not None and x > 0]
