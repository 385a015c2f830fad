"""Ends processes that fill a cache, with SIGKILL, and looks at what they leave: `python -m tests.cache_crash`.

    boundaries [all]    at every call that changes the disk, before it and in the middle of it, or in many places of it
    random N            N times, at random moments, two at a time
    two N               two processes that write the same N batches to their end
    limit               a process whose files may not grow any more

Children are forked, so this needs a process without threads and without jax: its own.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hydrax_gpu._cache import Store
from hydrax_gpu._cache.maintenance import Cache
from hydrax_gpu._cache.system import System
from hydrax_gpu.errors import CacheWriteError
from tests import caches
from tests.caches import LENGTH, half_of, keys, read, spec, write

BATCHES = [range(start, start + 10) for start in range(0, 30, 10)]


def forked(body: Callable[[], int]) -> int:
    """A child that ends with what `body` returns."""
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = body()
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fill(location: str, system: System | None = None) -> int:
    store = Store.open(spec(location), system=system)
    for batch in BATCHES:
        write(store, keys(batch))
    return 0


def dying(at: int, share: float | None) -> caches.Watched:
    """Kills this process ahead of change number `at`, or when it has written a share of that."""

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == at:
            if share is not None and name == "write":
                os.pwrite(arguments[0], half_of(arguments[1], share), arguments[2])
            os.kill(os.getpid(), signal.SIGKILL)

    return caches.Watched(before)


def look(location: str) -> int:
    """Makes sure that all that is served is right, and that another process can do the rest; what was there."""
    items = keys([item for batch in BATCHES for item in batch])
    store = Store.open(spec(location))
    bad = read(store, items)
    missing = [item for item in items.items.tolist() if not store.contains(keys([item]))[0]]
    assert len(bad) == len(missing), "what the index has is good"
    assert write(store, items) == len(missing), "a dead process keeps nothing"
    assert not read(store, items)
    store.close()
    assert Cache(location).verify().bad == []
    return len(items.items) - len(missing)


def boundaries(shares: tuple[float | None, ...]) -> None:
    kept: set[int] = set()
    cases = 0
    for at in range(1000):
        codes = set()
        for share in shares:
            with tempfile.TemporaryDirectory() as location:
                code = ended(forked(lambda at=at, share=share, to=location: fill(to, dying(at, share))))
                kept.add(look(location))
                codes.add(code)
                cases += 1
        assert codes in ({-signal.SIGKILL}, {0}), codes
        if codes == {0}:
            break
    assert at > 20 and {0, 10, 20, 30} <= kept, (at, kept)
    print(f"boundaries: {at} calls, {cases} processes; every entry served was right, {len(kept)} different states")


def random_kills(count: int) -> None:
    draw = random.Random(0)
    kept = torn = 0
    with tempfile.TemporaryDirectory() as location:

        def work(seed: int, ready: int) -> int:
            store = Store.open(spec(location))
            os.write(ready, b"!")
            for batch in np.random.default_rng(seed).permutation(LENGTH).reshape(-1, 5):
                write(store, keys(batch))
            return 0

        for round_ in range(0, count, 2):
            begun, ready = os.pipe()
            children = [forked(lambda seed=round_ + each, ready=ready: work(seed, ready)) for each in range(2)]
            while os.read(begun, 1) != b"!":
                pass
            time.sleep(draw.uniform(0.0, 0.02))
            for child in children:
                os.kill(child, signal.SIGKILL)
                ended(child)
            os.close(begun)
            os.close(ready)
            store = Store.open(spec(location))
            had = np.flatnonzero(store.contains(keys(range(LENGTH))))
            assert not read(store, keys(had)), "what the index has is good"
            store.close()
            if len(had) == LENGTH or round_ % 10 == 8:
                cache = Cache(location)
                outcome = cache.verify()
                assert not outcome.bad, outcome.bad
                assert not cache.replaced
                kept += len(had)
                # what was written and has no row in a journal
                torn += sum(path.stat().st_size for path in Path(location).glob("*.0.bin")) - 60 * len(had) > 0
                for path in Path(location).iterdir():
                    path.unlink()
    assert kept > count, f"only {kept} entries were written before the end of {count} processes"
    print(f"random: {count} processes killed; {kept} entries left by them, all good; {torn} caches with torn ends")


def two(batches: int) -> None:
    size = 16
    with tempfile.TemporaryDirectory() as location:
        wide = {"length": batches * size}
        gate, opened = os.pipe()

        def work(seed: int, answer: int) -> int:
            os.close(opened)
            store = Store.open(spec(location, **wide))
            os.read(gate, 1)
            rng = np.random.default_rng(seed)
            written = 0
            # half of the batches in one order, so that both want the same at the same time; and cut in different ways
            first, rest = np.split(np.arange(batches * size), 2)
            for batch in (*first.reshape(-1, size), *rng.permutation(rest).reshape(-1, size)):
                written += write(store, keys(batch))
            os.write(answer, f"{written} {store.stats.waits} {store.stats.entries_skipped}\n".encode())
            return 0

        read_end, write_end = os.pipe()
        children = [forked(lambda seed=seed: work(seed, write_end)) for seed in range(2)]
        os.close(opened)
        assert [ended(child) for child in children] == [0, 0]
        os.close(write_end)
        with os.fdopen(read_end) as answers:
            counts = [[int(each) for each in line.split()] for line in answers]
        cache = Cache(location)
        outcome = cache.verify()
        assert outcome.good and outcome.entries == batches * size, outcome
        assert cache.replaced == 0, f"{cache.replaced} entries were written twice"
        assert sum(count[0] for count in counts) == batches * size and all(count[0] for count in counts)
        print(f"two: {batches * size} entries, written once each: {counts} (written, waits, skipped)")


def limit() -> None:
    """The kernel itself refuses in the middle of a write."""
    with tempfile.TemporaryDirectory() as location:

        def work() -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
            store = Store.open(spec(location))
            written = 0
            for start in range(0, 400, 20):
                try:
                    written += write(store, keys(range(start, start + 20)))
                except CacheWriteError as error:
                    assert "File too large" in str(error) and error.errno == 27
                    assert not read(store, keys(range(written)))
                    return 10
            return 0

        assert ended(forked(work)) == 10
        store = Store.open(spec(location))
        had = np.flatnonzero(store.contains(keys(range(400))))
        assert 20 <= len(had) < 120 and not read(store, keys(had))
        assert write(store, keys(range(400))) == 400 - len(had)
        print(f"limit: {len(had)} entries were written before the limit, and are good")


def main(arguments: list[str]) -> None:
    # all packages are imported before the first fork
    with tempfile.TemporaryDirectory() as location:
        fill(location)
        look(location)
    match arguments:
        case ["boundaries"]:
            boundaries((None, 0.6))
        case ["boundaries", "all"]:
            boundaries((None, *(number / 10 for number in range(1, 10)), 0.99, 1.0))
        case ["random", count]:
            random_kills(int(count))
        case ["two", batches]:
            two(int(batches))
        case ["limit"]:
            limit()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
