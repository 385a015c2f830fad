"""Which rows of a slot a device has, and where it has them. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from hydrax_gpu._plan import BatchPlan

__all__ = ["Part", "Parts", "runs"]


class Part(NamedTuple):
    """What a device has of one array of a batch.

    Attributes:
        begin: first of its rows, among those of the host's slot.
        end: the row behind its last one.
        offset: of its first row in the device's slot, in bytes.
        row_nbytes: bytes from one row to the next.
    """

    begin: int
    end: int
    offset: int
    row_nbytes: int

    def of(self, row: int, plan: BatchPlan) -> range:
        """The rows that have what is loaded as `row`: itself and those that repeat it, as far as the device has them.

        Args:
            row: less than `plan.valid`.
            plan: of the batch.
        """
        first = max(self.begin - row, 0)
        begin = row + -(-first // plan.valid) * plan.valid
        return range(begin, min(self.end, plan.rows), plan.valid)

    def at(self, row: int) -> int:
        """Where one of its rows begins in the device's slot."""
        return self.offset + (row - self.begin) * self.row_nbytes


Parts: TypeAlias = "Callable[[int, BatchPlan], Mapping[str, Part]]"
"""`(index of the layout, plan of the batch) → what the device has, by array`; arrays of which it has nothing are left
out."""


def runs(copies: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Joins rows that follow each other in both places.

    Args:
        copies: `(source, destination)` of each row.

    Returns:
        `(first source, first destination, rows)`, ascending.
    """
    begin = end = (0, 0)
    for source, destination in sorted(copies):
        if (source, destination) != end or begin == end:
            if begin != end:
                yield begin[0], begin[1], end[0] - begin[0]
            begin = source, destination
        end = source + 1, destination + 1
    if begin != end:
        yield begin[0], begin[1], end[0] - begin[0]
