"""Permutations and seeds do not depend on how they are asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._plan.order import permute
from hydrax_gpu._plan.philox import Purpose
from hydrax_gpu._plan.seeds import batch_seed, batch_seeds, item_seeds

seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 2**32 - 1)
purposes = st.sampled_from([Purpose.ITEM_ORDER, Purpose.BATCH_ORDER])


@settings(max_examples=60, deadline=None)
@given(n=st.one_of(st.integers(1, 1200), st.integers(1025, 20_000)), seed=seeds, epoch=epochs, purpose=purposes)
def test_a_permutation_is_a_bijection(n: int, seed: int, epoch: int, purpose: Purpose) -> None:
    everything = np.arange(n, dtype=np.int64)
    assert (np.sort(permute(n, seed, epoch, everything, purpose=purpose)) == everything).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 2**62), seed=seeds, epoch=epochs)
def test_any_entries_in_any_order_and_any_grouping_are_the_same(
    data: st.DataObject, n: int, seed: int, epoch: int
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12)), np.int64)
    kept = positions.copy()
    together = permute(n, seed, epoch, positions)
    assert (positions == kept).all()
    assert together.min() >= 0
    assert together.max() < n
    assert len(set(together.tolist())) == len(set(positions.tolist()))
    assert permute(n, seed, epoch, positions[::-1].copy()).tolist() == together[::-1].tolist()
    assert [int(permute(n, seed, epoch, positions[i : i + 1])[0]) for i in range(len(positions))] == together.tolist()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.one_of(st.integers(1, 3000), st.integers(1, 2**62)), seed=seeds)
def test_several_epochs_at_once_are_the_same_as_one_by_one(data: st.DataObject, n: int, seed: int) -> None:
    several = data.draw(st.lists(epochs, min_size=1, max_size=4))
    positions = np.array(
        [data.draw(st.lists(st.integers(0, n - 1), min_size=3, max_size=3)) for _ in several], np.int64
    )
    column = np.array(several, np.int64)[:, None]
    together = permute(n, seed, column, positions)
    drawn = item_seeds(seed, column, together)
    for row, epoch in enumerate(several):
        assert (permute(n, seed, epoch, positions[row]) == together[row]).all()
        assert (item_seeds(seed, epoch, together[row]) == drawn[row]).all()
    shared = permute(n, seed, column, positions[:1])
    assert (shared[-1] == permute(n, seed, several[-1], positions[0])).all()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, epoch=epochs, items=st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=20))
def test_a_seed_depends_on_nothing_but_run_epoch_and_item(seed: int, epoch: int, items: list[int]) -> None:
    together = item_seeds(seed, epoch, np.array(items, np.int64)).tolist()
    assert together == [int(item_seeds(seed, epoch, np.array([item], np.int64))[0]) for item in items]
    assert all(0 <= drawn < 2**63 for drawn in together)
    assert len(set(together)) == len(set(items))
    of_batches = batch_seeds(seed, epoch, np.array(items, np.int64)).tolist()
    assert of_batches == [batch_seed(seed, epoch, item) for item in items]
    assert not set(of_batches) & set(together)
