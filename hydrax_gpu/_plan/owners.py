"""Which process writes which rows of a global batch to a cache: each row one that has all of it, and no other.

Where several processes have a row (its array is replicated, or a model axis goes over processes), they take turns with
the rows, so that each has about as much to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = ["Holders", "owned_rows"]

Holders: TypeAlias = Mapping[range, Sequence[int]]
"""For each stretch of rows the processes that have these rows of an array whole, ascending. Two stretches are disjoint,
and all are of one length: so shardings cut an axis."""


def owned_rows(arrays: Mapping[str, Holders], rows: int, process: int) -> list[int]:
    """The rows of a batch that a process writes, ascending.

    Args:
        arrays: for each array by name who has what.
        rows: of the batch.
        process: the process.

    Raises:
        ValueError: nobody has all of a row; names the array.
    """
    owned: list[int] = []
    known: dict[tuple[range, ...], list[int]] = {}
    steps = {name: len(next(iter(holders), range(rows))) or 1 for name, holders in arrays.items()}
    for row in range(rows):
        stretches = tuple(_stretch(row, steps[name], rows) for name in arrays)
        if (candidates := known.get(stretches)) is None:
            common: set[int] | None = None
            for name, stretch in zip(arrays, stretches, strict=True):
                holders = set(arrays[name].get(stretch, ()))
                common = holders if common is None else common & holders
                if not common:
                    raise ValueError(
                        f"array {name!r}: no process has whole rows of it (the first is row {row}), so that none can "
                        "write them to a cache"
                    )
            candidates = known[stretches] = sorted(common or ())
        if candidates[row % len(candidates)] == process:
            owned.append(row)
    return owned


def _stretch(row: int, step: int, rows: int) -> range:
    begin = row - row % step
    return range(begin, min(begin + step, rows))
