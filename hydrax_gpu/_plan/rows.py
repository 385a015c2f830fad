"""Which rows of a global batch a process loads.

The order of a run is that of its global batches, and knows nothing of processes. What a process has of a batch is a
selection of its rows: those that its devices need. So the number of processes can change between two parts of a run,
and nothing else does.

A padded batch of `valid` items has item `r % valid` in row `r`. In any window of it the same holds: the window's rows
repeat with the period `valid`. So a process that has a window loads `min(rows, valid)` items and copies the others, as
it does with a whole batch. Other selections have no period, and each of their rows is loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Share", "block_of", "loaded_rows", "union"]


class Share(NamedTuple):
    """What a process has of a global batch.

    Attributes:
        rows: numbers of its rows in the global batch, ascending.
        batch_rows: leading dimension of the global arrays.
        batch_valid: rows of the global batch that are not padding, which are the first.
        indices: of the items of all rows of the global batch, as planned.
    """

    rows: Sequence[int]
    batch_rows: int
    batch_valid: int
    indices: list[int]


def union(parts: Iterable[range]) -> Sequence[int]:
    """All numbers that are in one of the ranges, ascending, each once; a `range` if there are no gaps."""
    joined: list[range] = []
    for part in sorted(parts, key=lambda each: (each.start, each.stop)):
        if joined and part.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, part.stop))
        elif len(part):
            joined.append(part)
    if len(joined) <= 1:
        return joined[0] if joined else range(0)
    return tuple(row for part in joined for row in part)


def block_of(rows: int, process: int, processes: int) -> range:
    """The rows of a process where a batch is cut into equal blocks, one for each, as a mesh over hosts does it.

    Raises:
        ValueError: there is no such process, or the batch cannot be cut so.
    """
    if not 0 <= process < processes:
        raise ValueError(f"processes have numbers from 0 to {processes - 1}, got {process}.")
    if rows % processes:
        raise ValueError(f"a batch of {rows} rows cannot be cut into {processes} equal blocks.")
    block = rows // processes
    return range(process * block, (process + 1) * block)


def loaded_rows(rows: Sequence[int], batch_rows: int, valid: int) -> int:
    """How many of a process's rows are loaded, the first; the others repeat them in turn.

    Args:
        rows: of the process, ascending.
        batch_rows: rows of the global batch.
        valid: those of them that are not padding, which are the first.

    Raises:
        ValueError: these are not rows of such a batch.
    """
    count = len(rows)
    window = count > 0 and rows[-1] - rows[0] + 1 == count
    ascending = window if isinstance(rows, range) else all(a < b for a, b in itertools.pairwise(rows))
    if not count or not ascending or rows[0] < 0 or rows[-1] >= batch_rows:
        raise ValueError(f"wanted at least one of the rows from 0 to {batch_rows - 1}, ascending, got {rows!r}.")
    return min(count, valid) if window else count
