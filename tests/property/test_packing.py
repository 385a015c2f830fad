"""Packing of documents: equal to a packer that anybody can check by reading it, and nothing is lost."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu.sources import PackedSource, TokenSource, write_tokens
from hydrax_gpu.sources._packing import Long, document_order, pack

lengths_of = st.lists(st.integers(0, 30), max_size=40)
windows = st.none() | st.integers(1, 6)
longs = st.sampled_from(["split", "truncate", "drop"])


def pieces_of(lengths: list[int], order: list[int], length: int, long: str) -> list[tuple[int, int, int]]:
    """`(document, begin, size)` of all pieces, in the order in which they are packed."""
    pieces: list[tuple[int, int, int]] = []
    for document in order:
        size = lengths[document]
        if size > length and long == "drop":
            continue
        if long == "truncate":
            size = min(size, length)
        pieces += [(document, begin, min(length, size - begin)) for begin in range(0, size, length)]
    return pieces


def reference(
    pieces: list[tuple[int, int, int]], length: int, open_rows: int | None
) -> list[list[tuple[int, int, int]]]:
    """First fit, row by row and piece by piece."""
    rows: list[list[tuple[int, int, int]]] = []
    room: list[int] = []
    is_open: list[bool] = []
    for piece in pieces:
        for row in range(len(rows)):
            if is_open[row] and room[row] >= piece[2]:
                break
        else:
            row = len(rows)
            rows.append([])
            room.append(length)
            is_open.append(True)
        rows[row].append(piece)
        room[row] -= piece[2]
        if room[row] == 0:
            is_open[row] = False
        if open_rows is not None and sum(is_open) > open_rows:
            is_open[is_open.index(True)] = False
    return rows


@given(lengths_of, st.integers(1, 12), windows, longs, st.none() | st.integers(0, 2**64 - 1), st.integers(0, 3))
@settings(max_examples=300)
def test_first_fit_is_the_references(
    lengths: list[int], length: int, open_rows: int | None, long: Long, seed: int | None, epoch: int
) -> None:
    order = None if seed is None else document_order(len(lengths), seed, epoch)
    packing = pack(np.array(lengths, np.int64), length, order=order, open_rows=open_rows, long=long)
    numbers = list(range(len(lengths))) if order is None else order.tolist()
    pieces = pieces_of(lengths, numbers, length, long)
    got = [
        list(zip(packing.document[a:b].tolist(), packing.begin[a:b].tolist(), packing.size[a:b].tolist(), strict=True))
        for a, b in zip(packing.rows[:-1].tolist(), packing.rows[1:].tolist(), strict=True)
    ]
    assert got == reference(pieces, length, open_rows)
    report = packing.report
    assert report.tokens + report.truncated_tokens + report.dropped_tokens == sum(lengths)
    assert report.tokens + report.padding == report.rows * length
    assert report.documents == len(lengths) and report.empty_documents == lengths.count(0)
    too_long = sum(size > length for size in lengths)
    counts = (report.split_documents, report.truncated_documents, report.dropped_documents)
    assert counts == tuple(too_long if long == each else 0 for each in ("split", "truncate", "drop"))


@given(st.integers(1, 2000), st.integers(0, 2**64 - 1), st.integers(0, 5))
@settings(max_examples=30)
def test_the_order_of_an_epoch_is_a_permutation_of_its_own(count: int, seed: int, epoch: int) -> None:
    order = document_order(count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert (order == document_order(count, seed, epoch)).all()
    if count > 20:
        assert (order != document_order(count, seed, epoch + 1)).any()
        assert (order != document_order(count, seed ^ 1, epoch)).any()


def row_by_hand(row: list[tuple[int, int, int]], documents: list[Any], length: int, pad: int) -> dict[str, list[Any]]:
    """All five arrays of a row, token by token."""
    made: dict[str, list[Any]] = {"tokens": [], "segment_ids": [], "positions": [], "loss_mask": [], "targets": []}
    for segment, (document, begin, size) in enumerate(row, 1):
        piece = documents[document][begin : begin + size]
        for position, token in enumerate(piece):
            last = position == size - 1
            made["tokens"].append(token)
            made["segment_ids"].append(segment)
            made["positions"].append(position)
            made["loss_mask"].append(not last)
            made["targets"].append(pad if last else piece[position + 1])
    fill = {"tokens": pad, "segment_ids": 0, "positions": 0, "loss_mask": False, "targets": pad}
    return {name: values + [fill[name]] * (length - len(values)) for name, values in made.items()}


@given(
    st.lists(st.lists(st.integers(1, 60_000), max_size=20), min_size=1, max_size=12).filter(any),
    st.integers(1, 10),
    windows,
    st.integers(0, 9),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=60)
def test_segments_positions_masks_and_targets_are_right(
    documents: list[list[int]], length: int, open_rows: int | None, pad: int, epochs: int, parted: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source: Any = write_tokens(Path(folder, "t.npy"), [np.array(each, int) for each in documents])
        if parted:  # as bare tokens with offsets, and a slice of it
            np.array([0, *itertools.chain(*documents)], np.uint32).tofile(Path(folder, "t.bin"))
            ends = np.cumsum([0, 1, *map(len, documents)])
            source = TokenSource(Path(folder, "t.bin"), ends, dtype="u4")[1:]
        packed = PackedSource(source, length, seed=7, epochs=epochs, open_rows=open_rows, pad=pad)
        expected: list[dict[str, list[Any]]] = []
        for epoch in range(epochs):
            order = document_order(len(documents), 7, epoch).tolist()
            pieces = pieces_of(list(map(len, documents)), order, length, "split")
            rows = reference(pieces, length, open_rows)
            expected += [row_by_hand(row, documents, length, pad) for row in rows]
            assert packed.reports[epoch].rows == len(rows)
        values = packed.reader.read_rows([packed[i] for i in range(len(packed))])
        assert [{name: array.tolist() for name, array in value.items()} for value in values] == expected
