"""`hydrax-gpu cache`: info, verify, repair and copy."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu.__main__ import main
from hydrax_gpu._cache import Store, maintenance, peers
from hydrax_gpu._cache.maintenance import Cache
from hydrax_gpu.errors import CacheError
from tests import caches
from tests.caches import fill, keys, read, spec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of three writers whose processes have ended."""
    location = tmp_path / "cache"
    for start in range(0, 60, 20):
        fill(location, range(start, start + 20)).close()
    monkeypatch.setattr(peers, "alive", lambda *_: False)
    monkeypatch.setattr(maintenance, "alive", lambda *_: False)
    return location


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def snapshot(location: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in location.iterdir()}


def served(location: Path) -> set[int]:
    store = Store.open(spec(location, readonly=True))
    bad = read(store, keys(range(60)))
    store.close()
    return set(range(60)) - bad


def test_info(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", str(filled)]) == 0
    text = capsys.readouterr().out
    assert "60 entries of 1,000 items, 268 bytes each" in text and "of 3 writers" in text
    assert "x: [5, 3] float32" in text and "text: [200] uint8, zstd" in text and "cache_version 'v1'" in text
    assert main(["cache", "info", "--json", str(filled)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["entries"] == 60 and data["writers"] == 3 and data["running"] == []
    assert data["size_bytes"] == sum(path.stat().st_size for path in filled.iterdir())
    assert data["descriptor"]["seed"] == 7


def test_verify(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(filled)
    assert main(["cache", "verify", str(filled)]) == 0
    assert "60 entries" in capsys.readouterr().out
    name = caches.journals(filled)[0]
    flip(filled / f"{name}.0.bin", 185)
    flip(filled / f"{name}.extra.bin", 0)
    flip(filled / f"{name}.journal", len(before[f"{name}.journal"]) - 200)
    assert main(["cache", "verify", str(filled), "--quiet"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("1 of 20 rows are damaged" in line for line in lines)
    assert sum(line.startswith("item ") and "its checksum is wrong" in line for line in lines) == 2
    assert lines[-1].startswith("57 entries") and "`hydrax-gpu cache repair`" in lines[-1]


def test_repair_leaves_out_what_is_damaged_and_nothing_else(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = caches.journals(filled)[1]
    flip(filled / f"{name}.1.bin", 8)
    (filled / "cache.json").write_text("{")
    (filled / ".cache.json.0123").write_text("")
    (filled / "notes.txt").write_text("the user's")
    assert main(["cache", "repair", str(filled)]) == 1
    text = capsys.readouterr().out
    assert "59 entries" in text and "cache.json was damaged" in text and "1 damaged things were left out" in text
    assert len(served(filled)) == 59
    assert len(caches.journals(filled)) == 1 and caches.journals(filled)[0] != name
    assert sorted(path.name.partition(".")[2] for path in filled.iterdir()) == sorted(
        ["0.bin", "1.bin", "2.bin", "extra.bin", "claim", "journal", "json", "txt"]
    )
    assert main(["cache", "verify", str(filled)]) == 0
    assert main(["cache", "repair", str(filled)]) == 0 and len(served(filled)) == 59


def test_repair_keeps_the_better_of_two(filled: Path) -> None:
    name = caches.journals(filled)[0]
    flip(filled / f"{name}.0.bin", 0)
    store = Store.open(spec(filled))
    (bad,) = read(store, keys(range(60)))
    assert caches.write(store, keys([bad])) == 1
    store.close()
    assert Cache(str(filled)).replaced == 1
    assert Cache(str(filled)).repair().entries == 60
    assert len(served(filled)) == 60 and Cache(str(filled)).replaced == 0


def test_repair_can_end_anywhere(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it, nothing good is lost, and it can be done again."""
    monkeypatch.setattr(caches.System, "sync", lambda *_: None)

    class Ended(BaseException):
        pass

    saved = snapshot(filled)
    at = 0
    while True:

        def before(number: int, *_: Any, at: int = at) -> None:
            if number == at:
                raise Ended

        try:
            Cache(str(filled), caches.Watched(before)).repair()
        except Ended:
            assert served(filled) == set(range(60)), at
            assert Cache(str(filled)).repair().entries == 60
            assert served(filled) == set(range(60)) and len(caches.journals(filled)) == 1
        else:
            break
        for path in filled.iterdir():
            path.unlink()
        for name, data in saved.items():
            (filled / name).write_bytes(data)
        at += 1
    assert at > 15


def test_repair_waits_for_those_who_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path, range(60))
    before = snapshot(tmp_path)
    assert main(["cache", "repair", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"in use by process {os.getpid()} on" in error and "Wait" in error
    assert snapshot(tmp_path) == before
    store.close()


def test_of_two_repairs_at_once_at_most_one_goes_on(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Cache(str(filled))

    def second_comes(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == 4:
            # this process is both
            monkeypatch.setattr(maintenance, "alive", lambda *_: True)

    monkeypatch.setattr(Cache, "_refuse_repair", _once(Cache._refuse_repair))
    first._system = caches.Watched(second_comes)
    with pytest.raises(CacheError, match="in use"):
        first.repair()
    monkeypatch.undo()
    assert served(filled) == set(range(60))


def _once(refuse: Any) -> Any:
    """The first call sees nobody."""
    calls: list[str] = []

    def called(self: Cache, own: str = "") -> None:
        calls.append(own)
        if len(calls) > 1:
            assert own
            maintenance.alive = lambda *_: True  # pyright: ignore[reportAttributeAccessIssue]
            refuse(self, own)

    return called


def test_repair_of_a_cache_that_cannot_be_read_loses_nothing(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(caches.System):
        def __init__(self, ending: str) -> None:
            self.ending = ending

        def open(self, path: str) -> int:
            if path.endswith(self.ending):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return super().open(path)

    with pytest.raises(CacheError, match=r"journal cannot be read \(Permission denied\)"):
        Cache(str(filled), Refusing(".journal")).repair()
    for ending in (".0.bin", ".extra.bin"):
        with pytest.raises(PermissionError):
            Cache(str(filled), Refusing(ending)).repair()
        assert served(filled) == set(range(60))
    outcome = Cache(str(filled), Refusing(".0.bin")).verify()
    assert len(outcome.bad) == 60 and "Permission denied" in outcome.bad[0].reason


def test_copy(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(filled)
    flip(filled / f"{caches.journals(filled)[0]}.0.bin", 0)
    target = tmp_path / "copies" / "copy"
    assert main(["cache", "copy", str(filled), str(target)]) == 1
    assert "59 entries" in capsys.readouterr().out
    assert len(served(target)) == 59 and len(caches.journals(target)) == 1
    assert main(["cache", "copy", str(filled), str(target)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert {name for name, data in snapshot(filled).items() if data != before[name]} == {
        f"{caches.journals(filled)[0]}.0.bin"
    }


@pytest.mark.parametrize("action", ["info", "verify", "repair"])
def test_where_there_is_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    assert main(["cache", action, str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert main(["cache", action, str(tmp_path)]) == 2 and not list(tmp_path.iterdir())


def test_progress_is_a_bar_for_those_who_watch(filled: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hydrax_gpu", "cache", "copy", str(filled), str(tmp_path / "copy")]
    ours, theirs = pty.openpty()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60)
    os.close(theirs)
    shown = ""
    # the end of a terminal is an error
    with contextlib.suppress(OSError):
        while part := os.read(ours, 100_000):
            shown += part.decode()
    os.close(ours)
    assert done.returncode == 0 and "60/60" in shown and "60/60" not in done.stdout


def test_progress_is_lines_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hydrax_gpu._cachecli import progress

    now = iter(np.arange(0.0, 100.0, 3.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Progress("verify", 3000, quiet=False) as shown:
        for _ in range(3):
            shown(1000)
    assert capsys.readouterr().err.splitlines() == ["verify: 2,000 of 3,000 entries"]
