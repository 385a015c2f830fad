"""Writing what `Batch.cache` is given: by other threads, to the last batch, and never in the way of the training."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import Dataloader
from hydrax_gpu._cache import Store
from hydrax_gpu._cache.system import System
from hydrax_gpu._engine import caches as engine_caches
from hydrax_gpu._engine.caches import Caches
from tests import loaders
from tests.cached_runs import direct, encode, encoded, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """Nothing is written before the event; the threads that have written."""
    opened, threads = threading.Event(), list[int]()
    write = Store.write

    def held(self: Store, *arguments: Any) -> int:
        assert opened.wait(60)
        threads.append(threading.get_ident())
        return write(self, *arguments)

    monkeypatch.setattr(Store, "write", held)
    return opened, threads


def opens(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, method: str) -> None:
    """Opens the gate as soon as this method of `Caches` is called."""
    original: Callable[..., Any] = getattr(Caches, method)

    def call(self: Caches, *arguments: Any) -> Any:
        gate.set()
        return original(self, *arguments)

    monkeypatch.setattr(Caches, method, call)


@pytest.mark.parametrize("cachers", [1, 3])
def test_leaving_the_with_block_waits_for_the_writers(
    cachers: int, gate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened, threads = gate
    opens(monkeypatch, opened, "close")
    _, _, loader = run(loaders.draw, encoded(tmp_path / "c"), cacher_count=cachers)
    assert len(threads) == 6 and threading.get_ident() not in threads
    assert loader.report().caches[0].written == 22
    assert not any(run(loaders.Forbidden(), encoded(tmp_path / "c"))[1])


def test_without_writers_the_call_itself_writes(gate: Any, tmp_path: Path) -> None:
    opened, threads = gate
    opened.set()
    run(loaders.draw, encoded(tmp_path / "c"), cacher_count=0)
    assert threads == [threading.get_ident()] * 6


def test_cache_waits_when_too_much_is_to_be_written(
    gate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened, _ = gate
    monkeypatch.setattr(engine_caches, "QUEUE_BYTES", 3 * 4 * (10 + 4))  # three batches
    opens(monkeypatch, opened, "_wait_for_room")
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        contents, _, loader = run(loaders.draw, encoded(tmp_path / "c"))
    (info,) = loader.report().caches
    assert info.queue_waits >= 1 and info.queue_wait_seconds > 0 and info.written == 22
    assert "Batch.cache waited" in str(info)
    assert len([record for record in caplog.records if "has to wait" in record.message]) == 1
    assert run(loaders.Forbidden(), encoded(tmp_path / "c"))[0] == contents


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_cached_is_written_however_the_block_is_left(
    error: type[BaseException], gate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opens(monkeypatch, gate[0], "close")
    seen: list[int] = []

    def fails_at_the_fourth(batch: Any) -> None:
        encode(batch)
        seen.append(1)
        if len(seen) == 4:
            raise error

    with pytest.raises(error):
        run(loaders.draw, encoded(tmp_path / "c"), fails_at_the_fourth)
    _, uncached, _ = run(loaders.draw, encoded(tmp_path / "c"), lambda batch: None)
    assert uncached == [False] * 4 + [True] * 2


def test_what_was_cached_is_written_at_the_end_of_the_interpreter(tmp_path: Path) -> None:
    script = (
        "import sys, time\nsys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\n"
        "from hydrax_gpu import Dataloader\nfrom hydrax_gpu._cache import Store\n"
        "from tests import loaders\nfrom tests.cached_runs import encode, encoded\n"
        "write = Store.write\n"
        "import threading\nmain = threading.main_thread()\n"
        "def slow(self, *arguments):\n"
        "    main.join(60)\n"  # the main thread is joined when its script has ended
        "    return write(self, *arguments)\n"
        "Store.write = slow\n"
        "loader = Dataloader(loaders.draw, encoded(Path(sys.argv[1])), executor='thread', end_at=('epoch', 1))\n"
        "loader.__enter__()\n"
        "for batch in loader:\n    encode(batch)\n    del batch\n"
        "print('ended')\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "c"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
    assert not any(run(loaders.Forbidden(), encoded(tmp_path / "c"))[1])


@pytest.mark.parametrize(
    "make, number", [(encoded, errno.ENOSPC), (direct, errno.ENOSPC), (direct, errno.EROFS), (encoded, errno.EACCES)]
)
def test_training_goes_on_when_nothing_more_can_be_written(
    make: Any, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _, _ = run(loaders.draw, make(None, shuffle_later="batchwise"), end_at=("epoch", 2))
    write, calls = System.write, list[int]()

    def fails_after_a_while(self: System, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 9:
            raise OSError(number, os.strerror(number))
        return write(self, *arguments)

    monkeypatch.setattr(System, "write", fails_after_a_while)
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        contents, _, loader = run(loaders.draw, make(tmp_path / "c"), end_at=("epoch", 2), cacher_count=0)
    monkeypatch.undo()
    assert contents == plain
    (info,) = loader.report().caches
    assert 0 < info.written < 22
    assert len(info.troubles) == 1 and os.strerror(number) in info.troubles[0]
    assert info.troubles[0] in str(loader.report())
    assert len([record for record in caplog.records if os.strerror(number) in record.message]) == 1
    again, _, _ = run(loaders.draw, make(tmp_path / "c"), end_at=("epoch", 2))
    assert again == plain, "what was written is good"


def test_arrays_that_cannot_be_had_are_not_written(gate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened, _ = gate
    opens(monkeypatch, opened, "close")
    with Dataloader(loaders.draw, encoded(tmp_path / "c"), executor="inline", end_at=("epoch", 1)) as loader:
        for batch in loader:
            encode(batch)
            if batch.indices[0] in (8, 12):  # the first may be in the writer's hands already, waiting at the gate
                batch.arrays["w"].delete()
            del batch
    (info,) = loader.report().caches
    assert info.written == 22 - 8
    assert len(info.troubles) == 1 and "cannot be had" in info.troubles[0]


@pytest.mark.parametrize("make", [encoded, direct])
def test_an_item_that_cannot_be_kept_does_not_keep_others_from_it(make: Any, tmp_path: Path) -> None:
    def tells(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        loaders.draw(item, arrays, seed)
        return {"lock": threading.Lock()} if item == 6 else {"item": item}

    def keep(batch: Any) -> None:
        if batch.uncached:
            before = {key: list(values) for key, values in batch.additional.items()}
            encode_with(batch, before)

    run_options: dict[str, Any] = {"end_at": ("epoch", 1)}
    with Dataloader(tells, make(tmp_path / "c"), executor="inline", **run_options) as loader:
        for batch in loader:
            keep(batch)
            del batch
    (info,) = loader.report().caches
    assert info.written == 21
    assert len(info.troubles) == 1 and "item 6" in info.troubles[0] and "lock" in info.troubles[0]


def encode_with(batch: Any, additional: dict[str, Any]) -> None:
    import jax.numpy as jnp

    rows = len(batch.indices)
    batch.cache({"z": jnp.ones((rows, 5), jnp.bfloat16), "w": jnp.zeros(rows)}, additional)


def test_pickles_that_others_could_have_written_are_not_opened(tmp_path: Path) -> None:
    def tells(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        loaders.draw(item, arrays, seed)
        return {"pickled": np.dtype("int32") if item == 2 else frozenset([item])}

    for make in encoded, direct:
        where = tmp_path / make.__name__
        with Dataloader(tells, make(where), executor="inline", end_at=("epoch", 1)) as loader:
            for batch in loader:
                first = dict(batch.additional)
                if batch.uncached:
                    encode_with(batch, first)
                del batch
        for path in where.glob("*.extra.bin"):
            path.chmod(0o666)
        contents, uncached, loader = run(tells, make(where), lambda batch: None)
        assert len(contents) == 6 and all(uncached) == (make is encoded)
        (info,) = loader.report().caches
        assert info.hits == 0 and any("pickle" in trouble for trouble in info.troubles), info
