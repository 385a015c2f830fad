"""First-fit packing: which pieces of which documents go into which row. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._plan.order import permute
from hydrax_gpu._plan.philox import Purpose

__all__ = ["Long", "Packing", "PackingReport", "document_order", "first_fit", "pack"]

I64: TypeAlias = npt.NDArray[np.int64]
Long: TypeAlias = Literal["split", "truncate", "drop"]


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What a packing came to. `tokens` + `truncated_tokens` + `dropped_tokens` are all there were.

    Attributes:
        rows: number of rows.
        documents: documents that there were.
        tokens: tokens that are in rows.
        padding: places in rows with none.
        split_documents: documents that were longer than a row, and are in several pieces.
        truncated_documents: documents that were cut to the length of a row.
        truncated_tokens: tokens that were cut off.
        dropped_documents: documents longer than a row that were left out.
        dropped_tokens: their tokens.
        empty_documents: documents without a token, of which there is nothing to pack.
    """

    rows: int
    documents: int
    tokens: int
    padding: int
    split_documents: int = 0
    truncated_documents: int = 0
    truncated_tokens: int = 0
    dropped_documents: int = 0
    dropped_tokens: int = 0
    empty_documents: int = 0

    @property
    def fill(self) -> float:
        """Share of the places that have a token, 0 to 1."""
        return self.tokens / (self.tokens + self.padding) if self.rows else 0.0

    def __str__(self) -> str:
        text = f"{self.tokens:,} tokens of {self.documents:,} documents in {self.rows:,} rows, {self.fill:.1%} full"
        cut, dropped = self.truncated_documents, self.dropped_documents
        others = (
            (self.split_documents, f"{self.split_documents:,} documents in several pieces"),
            (cut, f"{self.truncated_tokens:,} tokens of {cut:,} documents cut off"),
            (dropped, f"{dropped:,} documents with {self.dropped_tokens:,} tokens left out"),
            (self.empty_documents, f"{self.empty_documents:,} documents are empty"),
        )
        return "; ".join([text, *(line for count, line in others if count)])


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Pieces of documents, row by row.

    Attributes:
        rows: int64 `(rows + 1,)`; row `r` has the pieces `rows[r]` to `rows[r + 1]`, in the order of their places.
        document: int64 `(pieces,)`: the document that a piece is of.
        begin: int64 `(pieces,)`: its first token, counted from the document's.
        size: int64 `(pieces,)`: its tokens.
        report: what it came to.
    """

    rows: I64
    document: I64
    begin: I64
    size: I64
    report: PackingReport


def document_order(count: int, seed: int, epoch: int) -> I64:
    """The order in which documents are packed in an epoch: a permutation that (seed, epoch) determines."""
    if count == 0:
        return np.empty(0, np.int64)
    return permute(count, seed, epoch, np.arange(count, dtype=np.int64), purpose=Purpose.PACKING)


def pack(lengths: I64, length: int, *, order: I64 | None = None, open_rows: int | None = None, long: Long) -> Packing:
    """Packs documents into rows, by first fit.

    Documents are taken in `order`. One that is longer than a row is first cut into pieces of the row's length and what
    is left (`"split"`), to the length of a row (`"truncate"`), or left out (`"drop"`). Each piece goes into the first
    row, in the order in which rows were begun, that is open and has room for it, behind what is there; if there is
    none, a row is begun. A row is closed when it is full; and the row that was begun first of the open ones, when there
    are more than `open_rows` of them.

    Args:
        lengths: int64 `(documents,)`, tokens of each.
        length: places of a row, at least 1.
        order: numbers of the documents, each once; None for the order given.
        open_rows: how many rows can be open, at least 1; None: all.
        long: what becomes of documents longer than a row.

    Returns:
        The packing; rows are in the order in which they were begun.
    """
    numbers = np.arange(len(lengths), dtype=np.int64) if order is None else order
    sizes = lengths[numbers]
    too_long = sizes > length
    empty = int((sizes == 0).sum())
    truncated = dropped = 0
    if long == "truncate":
        truncated = int((sizes[too_long] - length).sum())
        sizes = np.minimum(sizes, length)
    elif long == "drop":
        dropped = int(sizes[too_long].sum())
        sizes = np.where(too_long, 0, sizes)
    pieces = -(-sizes // length)
    which = np.repeat(np.arange(len(sizes)), pieces)
    place = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = place * length
    size = np.minimum(sizes[which] - begin, length)
    row = np.array(first_fit(size.tolist(), length, open_rows), np.int64)
    count = int(row.max()) + 1 if len(row) else 0
    by_row = np.argsort(row, kind="stable")
    tokens, long_ones = int(size.sum()), int(too_long.sum())
    return Packing(
        np.searchsorted(row[by_row], np.arange(count + 1)).astype(np.int64),
        numbers[which][by_row],
        begin[by_row],
        size[by_row],
        PackingReport(
            rows=count,
            documents=len(lengths),
            tokens=tokens,
            padding=count * length - tokens,
            split_documents=long_ones if long == "split" else 0,
            truncated_documents=long_ones if long == "truncate" else 0,
            truncated_tokens=truncated,
            dropped_documents=long_ones if long == "drop" else 0,
            dropped_tokens=dropped,
            empty_documents=empty,
        ),
    )


def first_fit(sizes: list[int], length: int, open_rows: int | None) -> list[int]:
    """The row of each piece, see `pack`; in time O(log rows) a piece.

    A tree over the rows has in each node the most room that a row below it has, and the first row with enough is found
    on one way down (D. S. Johnson: "Near-optimal bin packing algorithms", 1973).
    """
    leaves = 1 << max(0, len(sizes) - 1).bit_length()
    room = [0] * (2 * leaves)  # of rows that are full, closed, or not begun: 0
    rows: list[int] = []
    begun = opened = oldest = 0
    most = len(sizes) if open_rows is None else open_rows
    for size in sizes:
        if room[1] >= size:
            node = 1
            while node < leaves:
                node *= 2
                if room[node] < size:
                    node += 1
            left = room[node] - size
            opened -= not left
        else:
            node, left = leaves + begun, length - size
            begun += 1
            opened += left > 0
        rows.append(node - leaves)
        _set(room, node, left)
        if opened > most:
            while not room[leaves + oldest]:
                oldest += 1
            _set(room, leaves + oldest, 0)
            opened -= 1
    return rows


def _set(room: list[int], node: int, left: int) -> None:
    room[node] = left
    while node > 1:
        other = room[node ^ 1]
        node >>= 1
        most = left if left >= other else other
        if room[node] == most:
            return
        room[node] = left = most
