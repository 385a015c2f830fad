"""Rows of `jax.Array`s on the host, for a cache to write."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["host_rows"]


def host_rows(array: Any, rows: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Rows of a `jax.Array`, as they are kept: C-contiguous, shape `(len(rows), *item_shape)`.

    Waits for them to be computed. Of a global array, of which other processes have parts, only what this one has is
    looked at, and nothing is computed or sent.

    Args:
        array: a `jax.Array`.
        rows: of the array, ascending. This process has all of them.
        dtype: that they are kept in.
    """
    if array.is_fully_addressable:
        whole = np.asarray(array)
        part = whole[rows[0] : rows[-1] + 1] if _window(rows) else whole[np.asarray(rows)]
        return np.ascontiguousarray(part.astype(dtype, copy=False))
    wanted = np.asarray(rows, np.int64)
    held = np.empty((len(rows), *array.shape[1:]), dtype)
    done: set[Any] = set()
    for shard in array.addressable_shards:
        slices: Sequence[slice] = shard.index
        places = [part.indices(size)[:2] for part, size in zip(slices, array.shape, strict=True)]
        if (key := tuple(places)) in done:
            continue  # another device has the same part
        done.add(key)
        begin, end = (bisect_left(rows, row) for row in places[0])
        if begin < end:
            rest = tuple(slice(*place) for place in places[1:])
            held[(slice(begin, end), *rest)] = np.asarray(shard.data)[wanted[begin:end] - places[0][0]]
    return held


def _window(rows: Sequence[int]) -> bool:
    return len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
