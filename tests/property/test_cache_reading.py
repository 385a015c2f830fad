"""Reading records: whatever lies where, what is good arrives and what is not is named."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._cache import checksums, reading
from hydrax_gpu._cache.bulk import Span, bulk
from hydrax_gpu._cache.files import Files
from hydrax_gpu._cache.reading import Reader, Records, straight
from hydrax_gpu._cache.system import System
from tests.kernels import host


@given(st.data())
def test_records_are_read_and_checked(data: st.DataObject) -> None:
    """In a row or not, of one size or not, in files that end too early or have wrong bytes in them."""
    count = data.draw(st.integers(1, 12), label="count")
    largest = data.draw(st.integers(1, 80), label="largest")
    shape = data.draw(st.sampled_from(["in a row", "of one size", "of any size"]), label="records")
    sizes = np.full(count, largest)
    in_file = in_memory = list(range(count))
    if shape != "in a row":
        in_file = data.draw(st.permutations(range(count)), label="order in the file")
        in_memory = data.draw(st.just(in_file) | st.permutations(range(count)), label="order in memory")
    if shape == "of any size":
        sizes = np.array(data.draw(st.lists(st.integers(0, largest), min_size=count, max_size=count), label="sizes"))
    start, base = data.draw(st.integers(0, 30), label="start"), data.draw(st.integers(0, 30), label="base")
    offsets, targets = start + _begins(sizes, in_file), base + _begins(sizes, in_memory)
    content = np.random.default_rng(7).integers(0, 256, start + int(sizes.sum()), np.uint8)
    seeds = checksums.seeds(np.arange(count), 0)
    digest = checksums.digest()
    records = [content[offset : offset + size].tobytes() for offset, size in zip(offsets, sizes, strict=True)]
    sums = [digest(record, seed) for record, seed in zip(records, seeds.tolist(), strict=True)]
    held = data.draw(st.just(len(content)) | st.integers(0, len(content)), label="bytes in the file")
    wrong = data.draw(st.none() | st.integers(0, len(content) - 1), label="wrong byte") if len(content) else None
    bad = {i for i in range(count) if sizes[i] and offsets[i] + sizes[i] > held}
    if wrong is not None:
        content[wrong] ^= 1
        if wrong < held:
            bad |= {i for i in range(count) if offsets[i] <= wrong < offsets[i] + sizes[i]}
    memory = np.zeros(base + int(sizes.sum()), np.uint8)
    if data.draw(st.booleans(), label="memory holds what it did"):  # which must not pass for what the file has lost
        for target, record in zip(targets, records, strict=True):
            memory[target : target + len(record)] = np.frombuffer(record, np.uint8)
    before = memory.copy()
    found: list[tuple[dict[int, str], int, int]] = []
    with (
        TemporaryDirectory() as folder,
        patch.object(reading, "LIMIT", 64),
        patch.object(reading, "GAP", 7),
        patch.object(reading, "_BLOCK", 160),
        patch.object(reading, "_SPAN", Span(7, 64, 160)),
    ):
        Path(folder, "file").write_bytes(content[:held].tobytes())
        for calls in None, bulk(host().path):
            memory[:] = before
            failed: dict[int, str] = {}
            reader = Reader(Files(folder, System()), System(), digest, calls)
            of_size = sizes if shape == "of any size" else largest
            wanted = Records(offsets, of_size, targets, np.array(sums, np.uint64), seeds)
            reader.read("file", wanted, memoryview(memory), failed.setdefault)
            assert set(failed) == bad
            for i, (target, record) in enumerate(zip(targets, records, strict=True)):
                if i not in bad:
                    assert memory[target : target + len(record)].tobytes() == record
            found.append((failed, reader.nbytes, reader.calls))
    assert found[0][:2] == found[1][:2]
    if largest <= 64:  # a larger record is checked as a whole by one of the two, and in pieces by the other
        assert found[0][2] == found[1][2]


def test_what_lies_in_a_row() -> None:
    """Is known by where it begins and where it goes, both."""
    steps = np.arange(4) * 8

    def records(offsets: np.ndarray, targets: np.ndarray, size: int = 8) -> Records:
        return Records(offsets, size, targets, np.zeros(len(offsets), np.uint64), np.zeros(len(offsets), np.uint64))

    assert straight(records(steps + 24, steps + 16))
    assert not straight(records(steps[[0, 2, 1, 3]], steps))
    assert not straight(records(steps, steps[[0, 2, 1, 3]]))
    assert not straight(records(steps * 2, steps))
    assert not straight(records(steps, steps, 4))
    assert not straight(records(steps[:0], steps[:0]))
    assert straight(records(np.array([0]), np.array([8]), reading.LIMIT))
    assert not straight(records(np.array([0]), np.array([8]), reading.LIMIT + 1))


def test_a_row_is_read_in_few_calls(tmp_path: Path) -> None:
    """A block at a time."""
    size, count = 1 << 16, 40
    (tmp_path / "file").write_bytes(os.urandom(size * count))
    offsets = np.arange(count) * size
    reader = Reader(Files(str(tmp_path), System()), System(), lambda *_: 0)
    memory = memoryview(bytearray(size * count))
    reader.read(
        "file", Records(offsets, size, offsets, np.zeros(count, np.uint64), np.zeros(count, np.uint64)), memory, _never
    )
    assert (reader.nbytes, reader.calls) == (size * count, 3)
    assert bytes(memory) == (tmp_path / "file").read_bytes()


def _begins(sizes: np.ndarray, order: object) -> np.ndarray:
    """Where each record begins when they lie behind one another in that order."""
    order = np.array(order)
    begins = np.empty(len(sizes), np.int64)
    begins[order] = np.cumsum(sizes[order]) - sizes[order]
    return begins


def _never(record: int, reason: str) -> None:
    raise AssertionError(f"record {record}: {reason}")
