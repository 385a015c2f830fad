"""Few large reads in place of many small ones: a pure plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["GAP", "LIMIT", "Read", "plan"]

LIMIT = 256 * 1024
"""Bytes of one read, unless a record is larger. Small enough that what was read is still in the processor's cache (of
the second level) when it is checked, and large enough that the call itself does not count."""

GAP = 16 * 1024
"""Bytes between two records that are read and thrown away rather than left out: copying them takes no longer than a
call of its own, and on a disk far less."""

_PIECES = 1024  # buffers of one call


class Read(NamedTuple):
    """One read.

    Attributes:
        offset: where in the file it begins.
        nbytes: its length.
        pieces: of that length, in order: `(target, nbytes)`, a place in memory, or -1 for bytes that nobody wants.
        records: the records that it reads, by their number.
    """

    offset: int
    nbytes: int
    pieces: list[tuple[int, int]]
    records: list[int]


def plan(
    offsets: Sequence[int], sizes: Sequence[int], targets: Sequence[int], *, gap: int = GAP, limit: int = LIMIT
) -> list[Read]:
    """Reads for records of one file, in the order of the file.

    Args:
        offsets: where each record begins in the file.
        sizes: bytes of each; those of no bytes are in no read.
        targets: where each goes in memory.
        gap: bytes between records that are read along with them, at most.
        limit: bytes of a read of more than one record, at most.
    """
    reads: list[Read] = []
    end = total = 0
    pieces: list[tuple[int, int]] = []
    records: list[int] = []
    for record in sorted(range(len(offsets)), key=offsets.__getitem__):
        offset, size, target = offsets[record], sizes[record], targets[record]
        if not size:
            continue
        between = offset - end
        if not reads or not 0 <= between <= gap or total + between + size > limit or len(pieces) > _PIECES - 2:
            pieces, records, total, between = [], [], 0, 0
            reads.append(Read(offset, 0, pieces, records))
        if between:
            pieces.append((-1, between))
        if pieces and pieces[-1][0] >= 0 and sum(pieces[-1]) == target:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + size)
        else:
            pieces.append((target, size))
        records.append(record)
        total += between + size
        end = offset + size
        reads[-1] = reads[-1]._replace(nbytes=total)
    return reads
