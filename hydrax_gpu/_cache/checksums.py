"""Checksums of what is on disk: XXH3 of large things, and one that NumPy computes for many small ones at once.

XXH3 (64 bits, https://github.com/Cyan4973/xxHash) runs at the speed of memory and is seeded with what the bytes are:
the right bytes of another entry or array do not pass. The rows of a journal have a checksum of the same size, made of
steps `h = (h ^ word) * odd; h ^= h >> 32`, each of which is a bijection of `h`: it differs for certain when one word
does, and else with the odds of 64 bits. None of them is a defence against someone who means harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu.errors import CacheError

__all__ = ["EXTRA", "Digest", "digest", "row_sums", "seeds"]

Digest = Callable[[Any, int], int]

EXTRA = 0xFFFF
"""The additional data of an entry, where an array has its position."""

_PRIMES = tuple(np.uint64(prime) for prime in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SHIFT = np.uint64(32)


def digest() -> Digest:
    """The function `(bytes, seed) -> 64-bit sum`.

    Raises:
        CacheError: xxhash is not installed.
    """
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError as error:
        raise CacheError(
            f"a cache needs the package xxhash, which cannot be imported ({error}): pip install 'hydrax-gpu[cache]'."
        ) from error
    return xxh3_64_intdigest


def seeds(keys: npt.NDArray[np.int64], what: int) -> npt.NDArray[np.uint64]:
    """Seed of the sum of each key's array number `what`, or its `EXTRA`. The finalizer of splitmix64."""
    mixed = (keys.astype(np.uint64) + np.uint64(what + 1)) * _PRIMES[0] ^ np.uint64(what)
    mixed = (mixed ^ mixed >> np.uint64(30)) * _PRIMES[1]
    mixed = (mixed ^ mixed >> np.uint64(27)) * _PRIMES[2]
    return mixed ^ mixed >> np.uint64(31)


def row_sums(words: npt.NDArray[np.uint64], first: int, seed: int) -> npt.NDArray[np.uint64]:
    """Sum of each row of `words` (rows, words a row), of which the first is row number `first` of its file."""
    state = np.arange(first, first + len(words), dtype=np.uint64) * _PRIMES[0] + np.uint64(seed)
    for column in range(words.shape[1]):
        state = (state ^ words[:, column]) * _PRIMES[1]
        state ^= state >> _SHIFT
    # a file of zeros must not pass
    return state ^ _PRIMES[2]
