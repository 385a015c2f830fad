"""`pad_ragged`: the host build equals its twin, and the twin what it is said to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._kernels.pad_ragged import EXTRAS, PadRagged, Ragged, error_of, twin
from tests.kernels import Rows, assert_same_bits, levels, values


def splits_of(lengths: list[int], dtype: Any = np.int32) -> np.ndarray[Any, Any]:
    return np.cumsum([0, *lengths], dtype=dtype)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_host_build_equals_the_twin(data: st.DataObject) -> None:
    draw = data.draw
    dtype = np.dtype(draw(st.sampled_from(["uint8", "bfloat16", "int32", "float32", "int64", "complex64"])))
    split = np.dtype(draw(st.sampled_from([np.int32, np.int64])))
    rows, single = draw(st.integers(0, 3)), draw(st.booleans())
    packed = not single and draw(st.booleans())
    sequences = 1 if single else draw(st.integers(1, 6))
    capacity, length = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    lines = draw(st.integers(1, 6)) if packed else sequences
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ragged = Ragged(
        capacity, draw(st.sampled_from([1, 3, 8])), sequences, lines, length, single, packed,
        not packed and draw(st.booleans()), values(rng, (1,), dtype)[0],
    )  # fmt: skip
    offset, gap = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    given_values = Rows((rows, capacity, ragged.width), dtype, offset, gap)
    given_values.array[...] = values(rng, given_values.array.shape, dtype)
    given_splits = Rows((rows,) if single else (rows, sequences + 1), split, gap, offset)
    for row in range(rows):
        # mostly sound, now and then anything
        ends = np.sort(rng.integers(0, capacity + 1, sequences + 1))
        ends[0] = 0
        if draw(st.integers(0, 4)) == 0:
            ends[rng.integers(0, sequences + 1)] = rng.integers(-5, 60)
        given_splits.array[row] = ends[-1] if single else ends
    asked = {name for name in EXTRAS if draw(st.booleans())}
    for library in levels():
        out = Rows((rows, lines, length, ragged.width), dtype, gap, offset)
        extras = {name: Rows((rows, lines, length), EXTRAS[name], offset, gap) for name in asked}
        arrays = {name: extra.array for name, extra in extras.items()}
        status = PadRagged(library, ragged, dtype, split)(given_values.array, given_splits.array, out.array, arrays)
        for row in range(rows):
            filled, more, wanted = twin(ragged, given_values.array[row], given_splits.array[row])
            assert status[row] == wanted
            if wanted:
                assert error_of(ragged, wanted, given_splits.array[row])
                continue
            assert_same_bits(out.array[row], filled)
            for name in asked:
                assert_same_bits(arrays[name][row], more[name])
        for each in (out, *extras.values()):
            each.assert_no_other_bytes()


def test_padded_sequences_have_a_line_each() -> None:
    ragged = Ragged(6, 1, 3, 3, 4, False, False, False, np.int32(-1))
    out, extras, status = twin(ragged, np.arange(6).reshape(6, 1).astype(np.int32), splits_of([2, 0, 3]))
    assert status == 0
    assert out[..., 0].tolist() == [[0, 1, -1, -1], [-1, -1, -1, -1], [2, 3, 4, -1]]
    assert extras["mask"].tolist() == [[True, True, False, False], [False] * 4, [True, True, True, False]]
    assert extras["segment_ids"].tolist() == [[1, 1, 0, 0], [0] * 4, [1, 1, 1, 0]]
    assert extras["positions"].tolist() == [[0, 1, 0, 0], [0] * 4, [0, 1, 2, 0]]


def test_packed_sequences_go_to_the_first_line_with_room() -> None:
    ragged = Ragged(12, 1, 5, 2, 6, False, True, False, np.int32(-1))
    lengths = [4, 3, 2, 0, 3]
    out, extras, status = twin(ragged, np.arange(12).reshape(12, 1).astype(np.int32), splits_of(lengths))
    assert status == 0
    assert out[..., 0].tolist() == [[0, 1, 2, 3, 7, 8], [4, 5, 6, 9, 10, 11]]
    assert extras["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2]]
    assert extras["positions"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert extras["mask"].all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 8))
def test_packing_is_first_fit(lengths: list[int], lines: int) -> None:
    """Against first fit as textbooks have it: bins of what they hold."""
    bins: list[list[int]] = [[] for _ in range(lines)]
    fits = True
    for number, length in enumerate(lengths):
        if length:
            room = [each for each in bins if sum(lengths[k] for k in each) + length <= 9]
            fits = fits and bool(room)
            if not fits:
                break
            room[0].append(number)
    capacity = max(1, sum(lengths))
    ragged = Ragged(capacity, 1, len(lengths), lines, 9, False, True, False, np.int32(-1))
    source = np.arange(capacity, dtype=np.int32).reshape(-1, 1)
    splits = splits_of(lengths)
    out, extras, status = twin(ragged, source, splits)
    assert (status == 0) == fits
    if fits:
        for line, each in enumerate(bins):
            packed = [int(value) for k in each for value in source[splits[k] : splits[k + 1], 0]]
            assert out[line, :, 0].tolist() == packed + [-1] * (9 - len(packed))
            ids = [number + 1 for number, k in enumerate(each) for _ in range(lengths[k])]
            assert extras["segment_ids"][line].tolist() == ids + [0] * (9 - len(ids))


@pytest.mark.parametrize(
    ("splits", "packed", "text"),
    [
        (
            [1, 2, 3],
            False,
            "row splits 0 and 1 are 1 and 2; wanted splits that begin at 0, do not descend and end at 8",
        ),
        ([0, 3, 2], False, "row splits 1 and 2 are 3 and 2; wanted splits that begin at 0, do not descend"),
        ([0, 2, 9], False, "row splits 1 and 2 are 2 and 9; wanted splits that begin at 0, do not descend"),
        ([0, 2, 7], False, "sequence 1 has 5 values, but a line holds 4"),
        ([0, 3, 6], True, "sequence 1 with 3 values fits in none of the 1 lines of 4"),
    ],
)
def test_what_is_wrong_with_splits_is_said(splits: list[int], packed: bool, text: str) -> None:
    ragged = Ragged(8, 1, 2, 1 if packed else 2, 4, False, packed, False, np.int32(0))
    given_splits = np.array([splits], np.int64)
    source = np.zeros((1, 8, 1), np.int32)
    for library in (None, *levels()):
        out = np.empty((1, ragged.lines, 4, 1), np.int32)
        status = PadRagged(library, ragged, out.dtype, given_splits.dtype)(source, given_splits, out, {})
        assert text in error_of(ragged, int(status[0]), given_splits[0])
