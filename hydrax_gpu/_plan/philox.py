"""Philox4x32-10, the counter-based random function that every random choice of the package comes from.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. There is
no stream and no state: 128 bits of counter and 64 bits of key go in, 128 bits come out, and any lane can be had at any
time at the same price.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["KEY_LIMIT", "U64", "Purpose", "philox4x32", "philox64"]

U64: TypeAlias = npt.NDArray[np.uint64]

KEY_LIMIT = 1 << 64
"""Keys are below this."""

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class Purpose(IntEnum):
    """What a random number is for: the last word of the counter, so that no two uses share a number.

    The values are part of the order of the data: changing one changes every run.
    """

    ITEM_SEED = 1
    BATCH_SEED = 2
    ITEM_ORDER = 3
    BATCH_ORDER = 4
    SUBSTITUTE = 5
    DRAW = 6
    PACKING = 16


def philox4x32(counter: tuple[U64 | int, U64 | int, U64 | int, U64 | int], key: int) -> U64:
    """Ten rounds of Philox4x32 for many counters at once.

    Args:
        counter: four 32-bit words, least significant first, each an int or a uint64 array; they broadcast.
        key: 64 bits; its low half is the first key word.

    Returns:
        uint64 array of shape `(4, *lanes)` that holds 32-bit words.
    """
    even, odd = _rounds(counter, key)
    words = np.empty((4, *even.shape[1:]), np.uint64)
    words[0::2] = even
    words[1::2] = odd
    return words


def philox64(counter: tuple[U64 | int, U64 | int, U64 | int, U64 | int], key: int) -> U64:
    """The same 128 bits as `philox4x32`, as two 64-bit words, the low half first.

    Returns:
        uint64 array of shape `(2, *lanes)`.
    """
    even, odd = _rounds(counter, key)
    odd <<= _32
    odd |= even
    return odd


def _rounds(counter: tuple[U64 | int, U64 | int, U64 | int, U64 | int], key: int) -> tuple[U64, U64]:
    # Words 0 and 2 are multiplied, words 1 and 3 are only xored: two arrays of two rows take half the NumPy calls of
    # four arrays, and at a thousand lanes the calls are what costs. A 32-bit word sits in 64 bits because that is what
    # its product needs.
    lanes = np.broadcast_shapes(*(np.shape(word) for word in counter))
    even = np.empty((2, *lanes), np.uint64)
    odd = np.empty((2, *lanes), np.uint64)
    even[0], odd[0], even[1], odd[1] = counter
    even, odd = even.reshape(2, -1), odd.reshape(2, -1)
    high = np.empty_like(even)
    swapped = high[::-1]
    for round_key in _round_keys(key):
        # x0' = high(x2) ^ x1 ^ k0, x1' = low(x2), x2' = high(x0) ^ x3 ^ k1, x3' = low(x0). Rows swap by stepping
        # backwards, and the three buffers change roles, so that no round allocates.
        np.multiply(even, _MULTIPLIERS, out=even)
        np.right_shift(even, _32, out=high)
        np.bitwise_xor(odd, round_key, out=odd)
        np.bitwise_xor(odd, swapped, out=odd)
        np.bitwise_and(even[::-1], _MASK, out=high)
        even, odd, high = odd, high, even
        swapped = high[::-1]
    return even.reshape(2, *lanes), odd.reshape(2, *lanes)


@lru_cache(maxsize=64)  # One key a group, asked for at every block.
def _round_keys(key: int) -> tuple[U64, ...]:
    if not 0 <= key < KEY_LIMIT:
        raise ValueError(f"the key of Philox4x32 must be in [0, 2**64), got {key}. Reduce it modulo 2**64.")
    halves = (key & 0xFFFFFFFF, key >> 32)
    return tuple(
        np.array([[(half + i * step) & 0xFFFFFFFF] for half, step in zip(halves, _WEYL, strict=True)], np.uint64)
        for i in range(_ROUNDS)
    )
