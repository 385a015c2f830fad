"""Shuffling without a shuffle: a keyed bijection of `[0, n)` that gives any entry on its own.

Memory and time to reach an entry do not grow with `n`. Two methods, by size:

- Up to `SMALL` entries, the ranks of `n` Philox words: every permutation is equally likely, which a handful of Feistel
  rounds cannot promise for a domain of a few elements. `SMALL` bounds the cost.
- Above, a Feistel network that adds modulo the sides of a grid of a little more than `n` cells (J. Black, P. Rogaway:
  "Ciphers with arbitrary finite domains", 2002). A result outside of `[0, n)` is sent through the network again until
  it is inside (cycle walking), which keeps it a bijection. The xor of a power of two would have up to twice `n` cells,
  and walk as often as not.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np

from hydrax_gpu._plan.philox import U64, Purpose, philox64
from hydrax_gpu._plan.seeds import I64, INDEX_LIMIT, counter_of

__all__ = ["SMALL", "permute"]

SMALL = 1024
"""Entries up to which a permutation is tabulated. Part of the order of the data: changing it changes every run."""

_ROUNDS = 6  # Four make a Feistel network of random functions a strong permutation (Luby, Rackoff); ours are only good.
_32 = np.uint64(32)
# Odd constants of the finalisers of splitmix64 and MurmurHash3: known to spread every input bit.
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0xFF51AFD7ED558CCD)


def permute(n: int, seed: int, epoch: int | I64, positions: I64, *, purpose: Purpose = Purpose.ITEM_ORDER) -> I64:
    """Entries of the permutation of `[0, n)` that (seed, epoch, purpose) selects.

    Args:
        n: length, in `[1, 2**62]`.
        seed: of the run, in `[0, 2**64)`.
        epoch: in `[0, 2**32)`, or an int64 array of them in the shape `(epochs, 1)`, a permutation for each.
        positions: int64 array of places in `[0, n)`: any shape for one epoch, `(epochs or 1, places)` for several.

    Returns:
        int64 array of the same values in any order of calls, in the broadcast shape of `epoch` and `positions`.
    """
    if not 1 <= n <= INDEX_LIMIT:
        raise ValueError(f"a permutation needs a length in [1, 2**62], got {n}.")
    if positions.size and (positions.min() < 0 or positions.max() >= n):
        raise ValueError(f"positions must be in [0, {n}), got {positions.min()} to {positions.max()}.")
    if n <= SMALL:
        return _tabulated(n, seed, epoch, positions, purpose)
    return _feistel(n, seed, epoch, positions, purpose)


def _tabulated(n: int, seed: int, epoch: int | I64, positions: I64, purpose: Purpose) -> I64:
    words = philox64(counter_of(np.arange(n, dtype=np.int64), epoch, purpose), seed)[0]
    # Stable: should two words ever be equal, every machine still agrees on the order.
    ranks = np.argsort(words, axis=-1, kind="stable").astype(np.int64, copy=False)
    if ranks.ndim == 1:
        return ranks[positions]
    return np.take_along_axis(ranks, np.broadcast_to(positions, (ranks.shape[0], positions.shape[-1])), axis=-1)


def _feistel(n: int, seed: int, epoch: int | I64, positions: I64, purpose: Purpose) -> I64:
    rows, columns = _grid(n)
    keys = _round_keys(seed, epoch, purpose)
    values = _encrypt(positions.view(np.uint64), rows, columns, keys)
    # The grid has up to sqrt(n) cells too many: one value in 32 walks at worst, and next to none for large n.
    outside = values >= np.uint64(n)
    while outside.any():
        per_lane = tuple(np.broadcast_to(key, values.shape)[outside] for key in keys)
        values[outside] = _encrypt(values[outside], rows, columns, per_lane)
        outside = values >= np.uint64(n)
    return values.view(np.int64)


def _grid(n: int) -> tuple[int, int]:
    # Between 1 and `rows` cells more than n. More than n, because a round of a Feistel network is a product of cyclic
    # shifts of one half, and where that is an even permutation (odd sizes; or xor on two bits and more, which is why
    # a power of two is no better) the whole network is even: half of all permutations of [0, n) would be out of reach.
    # Walking over one foreign cell already reaches both halves.
    rows = isqrt(n) + 1
    return rows, n // rows + 1


def _encrypt(values: U64, rows: int, columns: int, keys: tuple[U64, ...]) -> U64:
    width = np.uint64(columns)
    left = values // width
    right = values - left * width
    size, other = np.uint64(rows), width
    mixed = np.empty(np.broadcast_shapes(left.shape, keys[0].shape), np.uint64)
    spread = np.empty_like(mixed)
    if left.shape != mixed.shape:
        left, right = np.broadcast_to(left, mixed.shape).copy(), np.broadcast_to(right, mixed.shape).copy()
    for key in keys:
        # left = (left + F(right)) mod size, F a keyed 64-bit mix scaled to [0, size) by a multiplication.
        np.add(right, key, out=mixed)
        np.multiply(mixed, _MIX1, out=mixed)
        np.right_shift(mixed, _32, out=spread)
        np.bitwise_xor(mixed, spread, out=mixed)
        np.multiply(mixed, _MIX2, out=mixed)
        np.right_shift(mixed, _32, out=mixed)
        np.multiply(mixed, size, out=mixed)
        np.right_shift(mixed, _32, out=mixed)
        np.add(left, mixed, out=left)
        # One subtraction is enough; where it is one too many it wraps to a huge number, and the minimum undoes it.
        np.subtract(left, size, out=mixed)
        np.minimum(left, mixed, out=left)
        left, right = right, left
        size, other = other, size
    # An even number of rounds: the halves are back in their places.
    left *= width
    left += right
    return left


def _round_keys(seed: int, epoch: int | I64, purpose: Purpose) -> tuple[U64, ...]:
    if isinstance(epoch, np.ndarray):
        return tuple(_draw_keys(seed, epoch, purpose))
    return _round_keys_of_one(seed, epoch, purpose)


@lru_cache(maxsize=64)  # One entry a group and purpose: a walk in sequence asks again at every block.
def _round_keys_of_one(seed: int, epoch: int, purpose: Purpose) -> tuple[U64, ...]:
    return tuple(_draw_keys(seed, epoch, purpose))


def _draw_keys(seed: int, epoch: int | I64, purpose: Purpose) -> list[U64]:
    # Shape (1,) for an int and (epochs, 1) for an array. No tabulated permutation draws from index 2**63 - 1 downwards.
    top = np.int64((1 << 63) - 1)
    return [
        word
        for i in range(_ROUNDS // 2)
        for word in philox64(counter_of(np.array([top - i], np.int64), epoch, purpose), seed)
    ]
