"""`xxh3`: the host build and the twin are XXH3 as the package xxhash has it."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.xxh3 import SHORTEST, Xxh3
from tests.kernels import Rows, assert_same_bits, levels


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 3),
    nbytes=st.one_of(st.integers(SHORTEST, 2200), st.sampled_from([32 * 1024, 32 * 1024 + 1, 33 * 1024 + 64, 70_001])),
    offset=st.integers(0, 8),
    gap=st.integers(0, 8),
    seed=st.integers(0, 2**32),
)
def test_it_is_what_the_package_computes(rows: int, nbytes: int, offset: int, gap: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = Rows((rows, nbytes), np.uint8, offset, gap)
    records.array[...] = rng.integers(0, 256, (rows, nbytes), np.uint8)
    seeds = rng.integers(0, 2**64, rows, np.uint64, endpoint=False) * np.uint64(seed % 7 > 0)
    wanted = np.array(
        [xxhash.xxh3_64_intdigest(row.tobytes(), int(s)) for row, s in zip(records.array, seeds, strict=True)],
        np.uint64,
    )
    for library in (None, *levels()):
        sums = np.zeros(rows, np.uint64)
        Xxh3(library, nbytes)(records.array, seeds, sums)
        assert_same_bits(sums, wanted)


def test_records_that_are_hashed_in_another_way_are_refused() -> None:
    with pytest.raises(ValueError, match="got records of 240 bytes, wanted 241 or more"):
        Xxh3(None, 240)
