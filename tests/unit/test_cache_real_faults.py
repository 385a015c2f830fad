"""Faults that are real and not injected: file systems that refuse, Ctrl-C, and workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hydrax_gpu import Dataloader
from hydrax_gpu._cache import Store
from hydrax_gpu._cache import store as store_module
from hydrax_gpu._cache.maintenance import Cache
from tests import cache_faults, caches, loaders
from tests.cache_kills import DiesWriting
from tests.cached_runs import direct, encode, encoded, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", ["permission", "readonly", "full"])
def test_file_systems_that_refuse(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache_faults", case], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    if done.returncode == cache_faults.CANNOT:
        pytest.skip(done.stdout.strip().replace("\n", "; "))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{case}: ")


@pytest.mark.parametrize("writers", [1, 0])
def test_ctrl_c_while_a_batch_is_being_written(writers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = Store.write, [0]

    def interrupted(self: Store, *arguments: Any) -> int:
        calls[0] += 1
        if calls[0] == 3:  # the signal comes in the middle of it, to the main thread, whoever writes
            os.kill(os.getpid(), signal.SIGINT)
        return write(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", interrupted)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with Dataloader(
                loaders.draw, encoded(tmp_path / "c"), executor="inline", cacher_count=writers, end_at=("epoch", 1)
            ) as loader:
                seen = 0
                for batch in loader:
                    encode(batch)
                    seen += 1
                    del batch
        finally:
            signal.signal(signal.SIGINT, before)
    assert loader.interrupted and calls[0] == seen >= 3, "all that was handed over was written"
    state = loader.state()
    assert (state["epoch"], state["batch"]) == divmod(seen, 6)
    outcome = Cache(str(tmp_path / "c")).verify()
    assert outcome.good and outcome.entries == min(22, 4 * seen)
    rest, uncached, _ = run(loaders.draw, encoded(tmp_path / "c"), start_at=state, end_at=("epoch", 1))
    assert len(rest) == 6 - seen and all(uncached)
    whole, uncached, _ = run(loaders.Forbidden(), encoded(tmp_path / "c"))
    assert whole == run(loaders.draw, encoded(None))[0] and not any(uncached)


def test_a_worker_that_is_killed_while_it_writes_is_replaced_and_every_record_is_right(tmp_path: Path) -> None:
    deaths, location = tmp_path / "deaths", tmp_path / "c"
    deaths.mkdir()
    for number in range(2):
        (deaths / str(number)).touch()
    plain, _, _ = run(loaders.draw, direct(None, shuffle_later="batchwise"), lambda batch: None)
    kills = DiesWriting(str(deaths), at=4)
    options: dict[str, Any] = {"executor": "process", "loader_count": 2, "startup_func": kills, "depth": 2}
    first, _, loader = run(loaders.draw, direct(location), lambda batch: None, **options)
    report = loader.report()
    assert first == plain, "nobody notices"
    assert [death.exitcode for death in report.worker_deaths] == [-signal.SIGKILL] * 2 and not list(deaths.iterdir())
    assert report.bad == () and report.caches[0].troubles == ()
    assert not Cache(str(location)).verify().bad, "what was torn is no entry"
    again, _, loader = run(loaders.draw, direct(location), lambda batch: None)
    info = loader.report().caches[0]
    assert again == plain and info.bad == 0 and info.hits + info.written == 22
    assert run(loaders.Forbidden(), direct(location), lambda batch: None)[0] == plain


CLAIMS_AND_DIES = """
import os, sys
from hydrax_gpu._cache import Store, store
from tests import caches

store.new_name = lambda: "0" * 16
store.Writer.append = lambda *_: os.kill(os.getpid(), 9)
caches.write(Store.open(caches.spec(sys.argv[1])), caches.keys(range(10)))
"""


def test_what_a_killed_process_has_claimed_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its journal is seen for the first time by the call that finds its claim, so that nothing else tells yet that it is
    # dead; and its name is the smaller, to which others give way.
    store = Store.open(caches.spec(tmp_path))
    done = subprocess.run([sys.executable, "-c", CLAIMS_AND_DIES, str(tmp_path)], cwd=ROOT, timeout=100)
    assert done.returncode == -signal.SIGKILL and caches.journals(tmp_path) == ["0" * 16]
    assert (tmp_path / f"{'0' * 16}.claim").stat().st_size > 80
    monkeypatch.setattr(store_module, "new_name", lambda: "f" * 16)
    assert caches.write(store, caches.keys(range(10))) == 10
    assert store.stats.waits == 0
    store.close()
