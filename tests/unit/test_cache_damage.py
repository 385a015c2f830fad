"""Damage on disk is a miss, never wrong data: flips, torn and missing ends, zeros, files in each other's place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hydrax_gpu._cache import Store
from hydrax_gpu.errors import CacheError
from tests import caches
from tests.caches import fill, keys, read, spec, write

ITEMS = range(60)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A cache of two writers."""
    fill(tmp_path, ITEMS[:25], ITEMS[25:30]).close()
    fill(tmp_path, ITEMS[30:]).close()
    return tmp_path


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def missing(location: Path) -> set[int]:
    """Items that are not served; that the others are right is made sure of. Twice: what is known to be bad stays so."""
    store = Store.open(spec(location, readonly=True))
    try:
        bad = read(store, keys(ITEMS))
        assert read(store, keys(ITEMS)) == bad
        assert {item for item in ITEMS if not store.contains(keys([item]))[0]} == bad
        return bad
    finally:
        store.close()


def test_flips_in_every_file(filled: Path) -> None:
    seen = set()
    for path in sorted(filled.iterdir()):
        data = path.read_bytes()
        # every 997th byte of what is long, and enough of what is short
        step = min(997, max(1, len(data) // 12))
        for place in range(0, len(data), step):
            broken = bytearray(data)
            broken[place] ^= 0x10
            with changed(path, bytes(broken)):
                if path.name == "cache.json":
                    with pytest.raises(CacheError):
                        missing(filled)
                    continue
                bad = missing(filled)
            kind = path.name.partition(".")[2]
            seen.add(kind)
            # each byte of a file is of one entry, or of the head of a journal; a claim is of none
            expected = {"claim": (0,), "journal": (1, 30)}.get(kind, (1,))
            assert len(bad) in expected, (path.name, place, bad)
    assert seen == {"claim", "journal", "extra.bin", "0.bin", "1.bin", "2.bin"}


def test_all_flips_at_once(filled: Path) -> None:
    for path in filled.glob("*.*.bin"):
        data = bytearray(path.read_bytes())
        for place in range(0, len(data), 997):
            data[place] ^= 1
        path.write_bytes(data)
    assert 0 < len(missing(filled)) < 60


def test_every_end_of_the_last_record(filled: Path) -> None:
    writer = next(name for name in caches.journals(filled) if (filled / f"{name}.0.bin").stat().st_size == 30 * 60)
    row = 8 * (5 + 4 + 2 + 1)
    for kind, size in (("journal", row), ("0.bin", 60), ("1.bin", 8), ("2.bin", 20), ("extra.bin", 30)):
        path = filled / f"{writer}.{kind}"
        data = path.read_bytes()
        for cut in range(1, size + 1, 5 if kind == "journal" else 3):
            with changed(path, data[:-cut]):
                bad = missing(filled)
            assert len(bad) >= 1 and len(bad) <= 4, (kind, cut, bad)
        assert not missing(filled)


def test_zeros_and_files_that_are_not_there(filled: Path) -> None:
    for path in sorted(filled.glob("*.*")):
        if path.name == "cache.json":
            continue
        for data in (bytes(path.stat().st_size), b""):
            with changed(path, data):
                bad = missing(filled)
            assert (not bad) == path.name.endswith(".claim"), path.name
        path.rename(filled / "away")
        assert len(missing(filled)) in ((0,) if path.name.endswith(".claim") else (24, 30)), path.name
        (filled / "away").rename(path)
    assert not missing(filled)


def test_files_in_each_others_place(filled: Path) -> None:
    first, second = caches.journals(filled)
    for kind in ("journal", "0.bin", "1.bin", "2.bin", "extra.bin"):
        a, b = filled / f"{first}.{kind}", filled / f"{second}.{kind}"
        one, other = a.read_bytes(), b.read_bytes()
        with changed(a, other), changed(b, one):
            assert len(missing(filled)) >= 45, kind
    assert not missing(filled)


def test_a_record_in_the_place_of_another(filled: Path) -> None:
    path = max(filled.glob("*.1.bin"), key=lambda each: each.stat().st_size)
    data = path.read_bytes()
    with changed(path, data[8:16] + data[:8] + data[16:]):
        assert len(missing(filled)) == 2


def test_a_row_of_a_journal_in_the_place_of_another(filled: Path) -> None:
    row = 8 * (5 + 4 + 2 + 1)
    path = next(filled.glob("*.journal"))
    data = path.read_bytes()
    with changed(path, data[:-row] + data[-2 * row : -row]):
        assert len(missing(filled)) == 1


def test_training_goes_on_over_the_damage(filled: Path) -> None:
    """What is bad is written again, in a cache whose files all have some damage."""
    for path in filled.glob("*.*"):
        if path.name != "cache.json":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)
    store = Store.open(spec(filled))
    bad = read(store, keys(ITEMS))
    assert bad and write(store, keys(ITEMS)) == len(bad)
    assert not read(store, keys(ITEMS)) and not missing(filled)


def test_a_missing_description_is_made_anew_only_by_repair(filled: Path, tmp_path: Path) -> None:
    (filled / "cache.json").unlink()
    with pytest.raises(CacheError, match="No such file"):
        missing(filled)
    shutil.rmtree(filled)
