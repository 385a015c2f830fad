"""Entries read and written through the kernels' host library: as without it, whatever there is, and is not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._cache import Store, checksums
from hydrax_gpu._cache import bulk as module
from hydrax_gpu._cache.bulk import Bulk, bulk
from tests import caches
from tests.kernels import host


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nobody has looked yet whether there is a library, or will have."""
    bulk.cache_clear()
    yield
    bulk.cache_clear()


@pytest.fixture
def calls() -> Bulk:
    found = bulk(host().path)
    assert found is not None
    return found


def both(location: Path, **changes: Any) -> tuple[Store, Store]:
    """Two readers of one cache, without the library and with it."""
    spec = caches.spec(location, readonly=True, **changes)
    return Store.open(replace(spec, kernels=None)), Store.open(replace(spec, kernels=host().path))


def assert_same(stores: tuple[Store, Store], items: list[int], passes: list[int] | None = None) -> None:
    """Both stores read the same."""
    key = caches.keys(items, passes)
    arrays, _ = caches.content(key)
    results, views = [], []
    for store in stores:
        views.append({name: np.full_like(array, 77) for name, array in arrays.items()})
        results.append(store.read(key, views[-1]))
    slow, fast = results
    assert slow.bad == fast.bad
    assert all(map(caches.same, slow.additional, fast.additional))
    assert (slow.nbytes, slow.read_calls) == (fast.nbytes, fast.read_calls)
    good = np.setdiff1d(np.arange(len(items)), [offset for offset, _ in slow.bad])
    for name, array in arrays.items():
        np.testing.assert_array_equal(views[0][name][good], array[good])
        np.testing.assert_array_equal(views[1][name][good], array[good])


@pytest.mark.parametrize("seed", range(2))
def test_entries_of_several_writers_damaged_and_missing_ones(tmp_path: Path, seed: int) -> None:
    """Are told apart alike; in any order, also more than once."""
    rng = np.random.default_rng(seed)
    caches.fill(tmp_path, [1, 2, 3], [7, 5, 6], range(100, 200), [4]).close()
    caches.fill(tmp_path, range(300, 420), [0]).close()
    for file in sorted(tmp_path.glob("*.0.bin")):
        content = bytearray(file.read_bytes())
        content[int(rng.integers(len(content) // 2))] ^= 1
        file.write_bytes(content[:-30])
    stores = both(tmp_path)
    assert_same(stores, rng.permutation([*range(100, 170), *range(300, 370)]).tolist())  # all there, of two writers
    for number in range(40):
        count = int(rng.integers(0, 70))
        first = int(rng.integers(0, 350))
        items = rng.integers(0, 430, count) if number % 2 else np.arange(first, first + count)
        assert_same(stores, items.tolist())
    assert stores[0].stats == stores[1].stats
    assert {reason.split(": ")[-1] for reason in stores[0].stats.reasons} == {
        "it is missing", "its checksum is wrong", "its file ends before it",
    }  # fmt: skip


def test_entries_of_passes(tmp_path: Path) -> None:
    """And keys that the cache cannot have."""
    of_passes: dict[str, Any] = {"seeded": "pass", "shuffle_later": "itemwise"}
    store = Store.open(caches.spec(tmp_path, **of_passes))
    caches.write(store, caches.keys([1, 2, 3, 1], [0, 0, 5, 5]))
    stores = both(tmp_path, **of_passes)
    assert_same(stores, [3, 1, 1, 2, 2], [5, 5, 0, 0, 5])
    arrays, _ = caches.content(caches.keys([0]))
    for items, passes in ([-1], [0]), ([caches.LENGTH], [0]), ([0], [-1]), ([0], [1 << 23]), ([1 << 40], [0]):
        texts = []
        for reader in stores:
            with pytest.raises(ValueError, match="items") as raised:
                reader.read(caches.keys(items, passes), arrays)
            texts.append(str(raised.value))
        assert texts[0] == texts[1]


def test_entries_that_are_not_in_memory(tmp_path: Path) -> None:
    """Are waited for."""
    caches.fill(tmp_path, range(0, 500, 2), range(1, 500, 2)).close()
    stores = both(tmp_path)
    for items in (list(range(500)), list(range(499, -1, -7)), list(range(0, 500, 2))):
        for file in tmp_path.glob("*.bin"):
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        assert_same((stores[1], stores[0]), items)
    assert not stores[1].stats.bad


def test_a_record_that_is_in_memory_in_part(tmp_path: Path, calls: Bulk) -> None:
    """Is read in two goes, where the file system can tell."""
    content = np.random.default_rng(3).integers(0, 256, 1 << 20, np.uint8)
    path = tmp_path / "file"
    path.write_bytes(content.tobytes())
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, 5000, 0)
        size = len(content) // 2 - 1
        table = np.zeros((module.WORDS, 2), np.int64)
        table[module.OFFSET] = 0, size + 1
        table[module.SIZE] = size
        table[module.TARGET] = 0, size
        digest = checksums.digest()
        for record, offset in enumerate(table[module.OFFSET].tolist()):
            table.view(np.uint64)[module.SUM, record] = digest(content[offset : offset + size].tobytes(), 0)
        memory = np.zeros(2 * size, np.uint8)
        done = calls.read(fd, memory.ctypes.data, table, module.Span(1 << 14, 1 << 20, 1 << 20))
    finally:
        os.close(fd)
    assert done[:3] == (2 * size + 1, 1, 0)
    assert memory.tobytes() == np.delete(content, [size, 2 * size + 1]).tobytes()


def test_what_the_system_refuses(tmp_path: Path, calls: Bulk) -> None:
    """Is an error, with its number."""
    table = np.zeros((module.WORDS, 1), np.int64)
    table[module.SIZE] = 1
    memory = np.zeros(1, np.uint8)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            calls.read(folder, memory.ctypes.data, table, module.Span(0, 64, 64))
    finally:
        os.close(folder)


def test_sums_are_those_of_the_package(calls: Bulk) -> None:
    data = np.random.default_rng(5).integers(0, 256, (9, 777), np.uint8)
    rows = np.array([8, 0, 3, 3], np.int64)
    seeds = checksums.seeds(rows, 2)
    digest = checksums.digest()
    wanted = [digest(data[row].tobytes(), seed) for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True)]
    assert calls.sums(data.ctypes.data, 777, rows, seeds).tolist() == wanted


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("what", ["library", "names", "values"])
def test_without_what_it_takes_a_cache_is_read_all_the_same(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = host().path
    caches.fill(tmp_path / "cache", range(9)).close()
    bulk.cache_clear()
    if what == "library":
        kernels = str(tmp_path / "none.so")
    elif what == "names":
        monkeypatch.setattr(module, "_FUNCTIONS", ("XXH3_of_another_name",))
    else:  # a function with that name, which computes something else
        monkeypatch.setattr(module, "_FUNCTIONS", ("XXH64",))
    with caplog.at_level(logging.INFO, "hydrax_gpu"):
        store = Store.open(replace(caches.spec(tmp_path / "cache"), kernels=kernels))
        again = Store.open(replace(caches.spec(tmp_path / "cache"), kernels=kernels))
    assert bulk(kernels) is None
    for each in store, again:
        assert not caches.read(each, caches.keys(range(9)))
        each.close()
    told = [record for record in caplog.records if "one at a time" in record.getMessage()]
    assert len(told) == 1
