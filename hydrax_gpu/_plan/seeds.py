"""The seeds that loader functions get: pure functions of (run seed, epoch, item) and of (run seed, epoch, batch).

A seed does not depend on the batch that an item fell into, on the worker that loads it, or on anything drawn before.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._plan.philox import U64, Purpose, philox64

__all__ = ["EPOCH_LIMIT", "I64", "INDEX_LIMIT", "batch_seed", "batch_seeds", "counter_of", "item_seeds"]

I64: TypeAlias = npt.NDArray[np.int64]

EPOCH_LIMIT = 1 << 32
"""Epochs are below this: one word of the counter."""

INDEX_LIMIT = 1 << 62
"""Items, batches and lengths are below or at this: two words of the counter, and sums still fit an int64."""

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def item_seeds(seed: int, epoch: int | I64, items: I64) -> I64:
    """Seeds of items in an epoch.

    Args:
        seed: of the run, in `[0, 2**64)`.
        epoch: in `[0, 2**32)`; an array broadcasts against `items`.
        items: int64 indices in `[0, 2**62)`.

    Returns:
        int64 array in the broadcast shape. Seeds are in `[0, 2**63)`, which `random.Random`,
        `numpy.random.default_rng` and `jax.random.key` all take.
    """
    return _seeds(seed, epoch, items, Purpose.ITEM_SEED)


def batch_seeds(seed: int, epoch: int | I64, batches: I64) -> I64:
    """Seeds of whole batches; as `item_seeds`, and unrelated to them."""
    return _seeds(seed, epoch, batches, Purpose.BATCH_SEED)


def batch_seed(seed: int, epoch: int, batch: int) -> int:
    """Seed of one batch, in `[0, 2**63)`."""
    return int(batch_seeds(seed, epoch, np.array([batch], np.int64))[0])


def counter_of(index: I64, epoch: int | I64, purpose: Purpose) -> tuple[U64, U64, U64 | int, int]:
    """The counter that (index, epoch, purpose) has in every use of Philox here: 64, 32 and 32 bits.

    `index` must not be negative, and an `epoch` array not outside of `[0, 2**32)`; an int is checked.
    """
    words = index.view(np.uint64)
    if isinstance(epoch, np.ndarray):
        return words & _LOW, words >> _32, epoch.view(np.uint64), int(purpose)
    if not 0 <= epoch < EPOCH_LIMIT:
        raise ValueError(f"an epoch must be in [0, 2**32), got {epoch}. A run cannot be that long: check the position.")
    return words & _LOW, words >> _32, epoch, int(purpose)


def _seeds(seed: int, epoch: int | I64, index: I64, purpose: Purpose) -> I64:
    # 63 of 128 bits: any 10**6 of them have a collision with a chance of 5e-8.
    return (philox64(counter_of(index, epoch, purpose), seed)[0] >> np.uint64(1)).view(np.int64)
