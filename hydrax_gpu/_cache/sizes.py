"""How much room entries take."""

from __future__ import annotations

from collections.abc import Sequence

from hydrax_gpu._cache.descriptor import ArrayFormat
from hydrax_gpu._cache.journal import RowFormat
from hydrax_gpu._cache.table import Table

__all__ = ["ratio", "stored_nbytes"]


def stored_nbytes(arrays: Sequence[ArrayFormat], format: RowFormat, table: Table) -> list[int]:
    """Bytes on disk of each array of all entries that are known."""
    count = len(table)
    return [
        array.nbytes * count if place is None else table.sum(place + 1)
        for array, place in zip(arrays, format.place, strict=True)
    ]


def ratio(arrays: Sequence[ArrayFormat], stored: Sequence[int], count: int) -> float | None:
    """Bytes of the arrays of `count` entries, uncompressed, for each byte of `stored`; None for nothing."""
    total = sum(stored)
    return count * sum(array.value_nbytes for array in arrays) / total if total else None
