"""Fields of items in a slot, and which rows of a batch a device has, by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hydrax_gpu._mem.graphs import read_fields, write_fields
from hydrax_gpu._place.targets import Part, runs
from hydrax_gpu._plan import BatchPlan

NAMES = ("image", "label", "größe", "x")
DTYPES = st.sampled_from([np.dtype(each) for each in ("u1", "i8", "f4", "f2", "?", "u2")])
FIELDS = st.dictionaries(
    st.sampled_from(NAMES), arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5))
)


@settings(max_examples=40, deadline=None)
@given(FIELDS, st.integers(0, 4096), st.integers(0, 255))
def test_fields_are_read_as_they_were_written_or_there_are_none(fields: Any, room: int, before: int) -> None:
    memory = np.full(16 + room + 64, before, np.uint8)
    row = memory[: 16 + room]
    written = write_fields(row, NAMES, fields)
    assert (memory[16 + room :] == before).all(), "nothing is written beyond the end"
    found = read_fields(row, NAMES)
    if not written:
        assert found is None
        needed = 64 * -(-(16 + 96 * len(fields)) // 64) + sum(64 * -(-a.nbytes // 64) for a in fields.values())
        assert needed > row.size
        return
    assert found is not None and list(found) == list(fields)
    for name, array in fields.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert np.may_share_memory(found[name], row) or not array.nbytes
        assert not array.nbytes or (found[name].ctypes.data - row.ctypes.data) % 64 == 0
    write_fields(row, NAMES, None)
    assert read_fields(row, NAMES) is None


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=512, max_size=512), st.integers(0, 2), st.booleans())
def test_what_nobody_has_written_is_refused_and_reads_nothing_else(data: bytes, state: int, head: bool) -> None:
    row = np.frombuffer(data, np.uint8).copy()
    write_fields(row, NAMES, {"x": np.arange(3, dtype=np.int64)} if head else {})
    row[:4] = state, 0, 0, 0
    row[112 - 96 : 112] = np.frombuffer(data, np.uint8)[:96]
    try:
        found = read_fields(row, NAMES)
    except ValueError:
        return
    for array in (found or {}).values():
        begin = array.ctypes.data - row.ctypes.data
        assert begin >= 0 and begin + array.nbytes <= row.size


def test_items_with_other_fields_are_refused() -> None:
    row = np.zeros(1024, np.uint8)
    write_fields(row, ("a", "b"), {"b": np.float32(3)[None]})
    with pytest.raises(ValueError, match="its item has other fields than the first one, which has b, a"):
        read_fields(row, ("b", "a"))


def plan_of(rows: int, valid: int) -> BatchPlan:
    return BatchPlan(0, False, 0, 0, 0, 0, 0, rows, valid, [row % valid for row in range(rows)], None, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_row_of_a_part_is_that_of_one_item(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 40))
    plan = plan_of(rows, data.draw(st.integers(1, rows)))
    begin = data.draw(st.integers(0, rows - 1))
    part = Part(begin, data.draw(st.integers(begin + 1, 40)), 1000, 7)
    found: dict[int, int] = {}
    for row in range(plan.valid):
        for target in part.of(row, plan):
            assert target not in found
            found[target] = row
    assert found == {row: row % plan.valid for row in range(begin, min(part.end, rows))}
    assert [part.at(row) for row in sorted(found)] == [1000 + 7 * each for each in range(len(found))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), unique=True))
def test_runs_are_the_same_copies_and_as_few_as_can_be(copies: list[tuple[int, int]]) -> None:
    found = list(runs(copies))
    assert sorted((a + i, b + i) for a, b, count in found for i in range(count)) == sorted(copies)
    joined = set(copies)
    if all((a, c) not in joined for a, b in copies for c in range(13) if c != b):  # each source has one place
        assert len(found) == sum((a - 1, b - 1) not in joined for a, b in copies)
