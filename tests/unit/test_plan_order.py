"""Whether a permutation that is computed entry by entry is as good as a shuffle. Fixed seeds, generous thresholds."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from hydrax_gpu._plan.order import SMALL, permute
from hydrax_gpu._plan.philox import Purpose


def _everything(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)


def test_permutations_stay_what_they_are() -> None:
    # A change here is a change of every user's run: ORDER_VERSION goes up with it.
    assert permute(10, 0, 0, _everything(10)).tolist() == GOLDEN_SMALL
    assert permute(10**4, 42, 1, _everything(6)).tolist() == GOLDEN_MIDDLE
    assert permute(10**9, 2**64 - 1, 2**32 - 1, _everything(6)).tolist() == GOLDEN_LARGE
    assert permute(2**62, 1, 2, _everything(3) + (2**62 - 3)).tolist() == GOLDEN_LARGEST
    assert permute(5000, 7, 1, _everything(6), purpose=Purpose.BATCH_ORDER).tolist() == GOLDEN_BATCHES


GOLDEN_SMALL = [4, 6, 1, 2, 3, 8, 9, 0, 5, 7]
GOLDEN_MIDDLE = [444, 417, 4804, 1774, 1588, 922]
GOLDEN_LARGE = [216850017, 6669667, 36852383, 745809300, 974890711, 627669338]
GOLDEN_LARGEST = [2925797388546410093, 328324024605672899, 2598758428120455630]
GOLDEN_BATCHES = [3796, 3930, 3551, 3557, 45, 3529]


@pytest.mark.parametrize("n", [1, 2, 3, SMALL - 1, SMALL, SMALL + 1, 1088, 1089, 1090, 4096, 65536, 100_003])
def test_every_item_comes_exactly_once(n: int) -> None:
    assert (np.sort(permute(n, 9, 4, _everything(n))) == _everything(n)).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_small_lengths_give_every_permutation_about_equally_often(n: int) -> None:
    draws = 200 * math.factorial(n) if n < 6 else 50 * 720
    epochs = np.arange(draws, dtype=np.int64)[:, None]
    seen = Counter(map(tuple, permute(n, 77, epochs, _everything(n)[None, :]).tolist()))
    assert len(seen) == math.factorial(n)
    expected = draws / len(seen)
    chi2 = sum((count - expected) ** 2 / expected for count in seen.values())
    freedom = len(seen) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("n", [SMALL, SMALL + 1, 33 * 33, 2048, 4096])
def test_odd_permutations_are_as_frequent_as_even_ones(n: int) -> None:
    odd = 0
    for seed in range(60):
        follow = permute(n, seed, 0, _everything(n)).tolist()
        cycles = 0
        todo = [True] * n
        for start in range(n):
            if todo[start]:
                cycles += 1
                while todo[start]:
                    todo[start] = False
                    start = follow[start]
        odd += (n - cycles) % 2
    assert 15 <= odd <= 45  # 30 expected; either bound is 4 standard deviations away


@pytest.mark.parametrize("n", [1025, 2**14, 10**6, 10**9, 2**40, 2**62])
def test_where_an_item_lands_says_nothing_about_where_it_was(n: int) -> None:
    count = 40_000
    step = max(1, n // count)
    places = (_everything(min(n, count)) * step).astype(np.int64)
    for positions in (places, places // step):  # spread over everything, and the first ones
        values = permute(n, 3, 1, positions)
        # Pearson's r of what was and what is, of neighbours, and of low bits: normal with deviation 1 / sqrt(count).
        bound = 5 / math.sqrt(len(positions))
        assert abs(np.corrcoef(positions, values)[0, 1]) < bound
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < bound
        assert abs(np.mean((values & 1) * 2 - 1) * 1.0) < bound + 1 / n
        assert abs(np.mean(((values ^ positions) & 1) * 2 - 1)) < bound + 1 / n
        # 16 x 16 table of (old, new) sixteenths.
        old = np.arange(len(positions)) * 16 // len(positions)
        new = (values.astype(object) * 16 // n).astype(np.int64)
        table = np.bincount(old * 16 + new, minlength=256)
        expected = len(positions) / 256
        assert ((table - expected) ** 2 / expected).sum() < 255 + 6 * math.sqrt(510)
        # The step from one value to the next, modulo n, is uniform.
        steps = ((values[1:].astype(object) - values[:-1].astype(object)) % n * 64 // n).astype(np.int64)
        table = np.bincount(steps, minlength=64)
        expected = len(steps) / 64
        assert ((table - expected) ** 2 / expected).sum() < 63 + 6 * math.sqrt(126)


def test_the_orders_of_two_epochs_or_two_seeds_or_two_purposes_are_unrelated() -> None:
    n = 5000
    first = permute(n, 1, 0, _everything(n))
    others = [permute(n, 1, epoch, _everything(n)) for epoch in range(1, 40)]
    others += [permute(n, seed, 0, _everything(n)) for seed in [0, *range(2, 40), 2**32 + 1, 2**63 + 1]]
    others.append(permute(n, 1, 0, _everything(n), purpose=Purpose.BATCH_ORDER))
    same = [int((first == other).sum()) for other in others]
    assert max(same) < 10  # Poisson of mean 1
    assert 0.5 < np.mean(same) < 1.6
    assert max(abs(np.corrcoef(first, other)[0, 1]) for other in others) < 5 / math.sqrt(n)


def test_fixed_points_are_as_rare_as_they_should_be() -> None:
    fixed = [int((permute(2000, seed, 0, _everything(2000)) == _everything(2000)).sum()) for seed in range(200)]
    assert 0.7 < np.mean(fixed) < 1.3
    assert 0.6 < np.var(fixed) < 1.5


def test_memory_does_not_grow_with_the_length() -> None:
    positions = _everything(4096)
    permute(10**6, 1, 1, positions)
    tracemalloc.start()
    try:
        permute(2**62, 1, 1, positions)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", [0, 2**62 + 1])
def test_a_length_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=r"length in \[1, 2\*\*62\], got"):
        permute(n, 0, 0, np.zeros(1, np.int64))


@pytest.mark.parametrize("n", [10, 5000])
def test_positions_out_of_range_are_refused(n: int) -> None:
    for position in (-1, n):
        with pytest.raises(ValueError, match=rf"positions must be in \[0, {n}\), got {position}"):
            permute(n, 0, 0, np.array([position], np.int64))
