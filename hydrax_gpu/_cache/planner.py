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
    pieces: list[tuple[int, int]] = []
    records: list[int] = []
    start = end = -1 - gap
    into = last = 0  # the piece at the end: where it begins, and where it ends
    order = sorted(range(len(offsets)), key=offsets.__getitem__)
    for record in order:
        offset, size, target = offsets[record], sizes[record], targets[record]
        if not size:
            continue
        between = offset - end
        fits = 0 <= between <= gap and offset + size - start <= limit and len(pieces) < _PIECES - 2
        if fits and not between and target == last:
            last += size
        else:
            if records:
                pieces.append((into, last - into))
            if not fits:
                if records:
                    reads.append(Read(start, end - start, pieces, records))
                pieces, records, start = [], [], offset
            elif between:
                pieces.append((-1, between))
            into, last = target, target + size
        records.append(record)
        end = offset + size
    if records:
        pieces.append((into, last - into))
        reads.append(Read(start, end - start, pieces, records))
    return reads
