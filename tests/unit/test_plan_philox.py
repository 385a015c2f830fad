"""Philox against the known answers of its authors, and the seeds made from it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hydrax_gpu._plan.philox import philox4x32, philox64
from hydrax_gpu._plan.seeds import batch_seed, batch_seeds, item_seeds

# Random123, tests/kat_vectors: philox4x32 10
KNOWN = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFF_FFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter: tuple[int, int, int, int], key: int, expected: str) -> None:
    words = philox4x32(counter, key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected
    low, high = philox64(counter, key)
    assert int(low) == int(words[0]) | int(words[1]) << 32
    assert int(high) == int(words[2]) | int(words[3]) << 32


def test_lanes_do_not_influence_each_other() -> None:
    counters = np.array([counter for counter, _, _ in KNOWN], np.uint64)
    together = philox4x32((counters[:, 0], counters[:, 1], counters[:, 2], counters[:, 3]), 7)
    for lane, (counter, _, _) in enumerate(KNOWN):
        assert (together[:, lane] == philox4x32(counter, 7)).all()


def test_words_of_the_counter_broadcast_and_are_left_alone() -> None:
    rows = np.arange(3, dtype=np.uint64)[:, None]
    columns = np.arange(5, dtype=np.uint64)
    words = philox4x32((columns, 1, rows, 2), 3)
    assert words.shape == (4, 3, 5)
    assert (words[:, 2, 4] == philox4x32((4, 1, 2, 2), 3)).all()
    assert (columns == np.arange(5)).all()


@pytest.mark.parametrize("key", [-1, 1 << 64])
def test_a_key_of_more_than_64_bits_is_refused(key: int) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 2\*\*64\), got .* modulo"):
        philox64((0, 0, 0, 0), key)


def test_seeds_stay_what_they_are() -> None:
    # A change here is a change of every user's run: ORDER_VERSION goes up with it.
    items = np.array([0, 1, 2, 10**10, 2**62 - 1], np.int64)
    assert item_seeds(0, 0, items).tolist() == GOLDEN_A
    assert item_seeds(2**64 - 1, 2**32 - 1, items).tolist() == GOLDEN_B
    assert [batch_seed(42, 3, batch) for batch in (0, 1, 10**9)] == GOLDEN_C


GOLDEN_A = [694804623011559922, 2920059500271087089, 7887297465352363447, 218765680849865251, 8495293371239744601]
GOLDEN_B = [3406775771649043492, 5014065840006475367, 8251121011852542330, 6089642636283681744, 2494042094668545603]
GOLDEN_C = [8220098690127254778, 4725422004058727602, 3895558244486682786]


def test_seeds_fit_the_generators_that_people_use() -> None:
    seeds = item_seeds(5, 6, np.arange(1000, dtype=np.int64))
    assert seeds.dtype == np.int64
    assert seeds.min() >= 0
    assert seeds.max() > 2**62  # 63 bits are used
    random.Random(int(seeds[0]))
    np.random.default_rng(int(seeds[0]))


def test_every_bit_of_a_seed_is_as_often_set_as_not() -> None:
    seeds = item_seeds(5, 6, np.arange(20_000, dtype=np.int64))
    ones = np.array([int((seeds >> bit & 1).sum()) for bit in range(63)])
    assert (np.abs(ones - 10_000) < 6 * np.sqrt(5_000)).all()


def test_a_million_seeds_over_a_grid_have_no_collision() -> None:
    items = np.concatenate([np.arange(5_000), 10**10 + np.arange(5_000)]).astype(np.int64)
    epochs = np.array([0, 1, 2, 1000, 2**32 - 1], np.int64)[:, None]
    runs = [0, 1, 2, 3, 2**32, 2**32 + 1, 2**63, 2**64 - 1, 42, 1234, 1235]
    seeds = [item_seeds(run, epochs, items) for run in runs] + [batch_seeds(run, epochs, items) for run in runs]
    every = np.concatenate(seeds, axis=None)
    assert every.size > 10**6
    assert np.unique(every).size == every.size


def test_an_epoch_of_more_than_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\), got 4294967296"):
        item_seeds(0, 2**32, np.zeros(1, np.int64))
