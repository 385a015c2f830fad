"""Writers of one cache in any order of their calls, any of them dying anywhere: no entry twice, and none wrong."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu._cache import Store, peers, store
from hydrax_gpu._cache.maintenance import Cache
from hydrax_gpu._cache.process import Process
from hydrax_gpu._cache.system import System
from tests import caches
from tests.caches import Turns, keys, read, spec, write


class Died(BaseException):
    """The end of a process, as far as its files go."""


class Shared(caches.Watched):
    """Calls of one of several writers: each waits for its turn, and number `end` is the last, half done."""

    def __init__(self, turns: Turns, end: int) -> None:
        super().__init__(self._step)
        self._turns = turns
        self._end = end
        self._now = 0.0

    def _step(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        self._turns.wait()
        if number >= self._end:
            if number == self._end and name == "write":
                System.write(self, arguments[0], [caches.half_of(arguments[1])], arguments[2])
            raise Died

    def open(self, path: str) -> int:
        self._turns.wait()
        return super().open(path)

    def names(self, path: str) -> list[str]:
        self._turns.wait()
        return super().names(path)

    def clock(self) -> float:
        return self._now

    def pause(self, seconds: float) -> None:
        self._now += seconds
        self._turns.wait()


BATCH = st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True)
SCRIPTS = st.lists(st.lists(BATCH, min_size=1, max_size=3), min_size=2, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    SCRIPTS,
    st.lists(st.integers(0, 5), min_size=20, max_size=400),
    st.lists(st.one_of(st.just(10**6), st.integers(5, 40)), min_size=3, max_size=3),
    st.permutations(range(3)),
)
def test_any_order_of_calls(
    scripts: list[list[list[int]]], order: list[int], ends: list[int], names: list[int]
) -> None:
    picks = iter(order)
    # when the draws are used up, all go on in turn
    turn = iter(range(10**9))

    def choose(count: int) -> int:
        drawn = next(picks, None)
        return (next(turn) if drawn is None else drawn) % count

    dead: set[int] = set()
    written = [0] * len(scripts)
    with tempfile.TemporaryDirectory() as location, pytest.MonkeyPatch.context() as patch:
        Store.open(spec(location)).close()

        def body(number: int) -> None:
            try:
                mine = Store.open(spec(location), system=Shared(turns, ends[number]))
                for batch in scripts[number]:
                    written[number] += write(mine, keys(batch))
                    mine.refresh()
                    read(mine, keys(batch))
            except Died:
                dead.add(number)
                raise

        def process() -> Process:
            number = turns.number()
            return Process("simulated", -1 if number is None else number, 0)

        turns = Turns([lambda number=number: body(number) for number in range(len(scripts))], choose)
        patch.setattr(store, "current", process)
        patch.setattr(store, "new_name", lambda: f"{names[turns.number() or 0]:016x}")
        patch.setattr(peers, "alive", lambda process, here: process.pid not in dead)
        turns.run()
        for number, error in turns.ended.items():
            assert error is None or isinstance(error, Died), (number, error)
        cache = Cache(location)
        assert cache.replaced == 0, "an entry was written twice"
        outcome = cache.verify()
        assert not outcome.bad
        wanted = {item for script in scripts for batch in script for item in batch}
        last = Store.open(spec(location, readonly=True))
        assert read(last, keys(range(8))) == set(range(8)) - {
            item for item in range(8) if last.contains(keys([item]))[0]
        }
        if not dead:
            assert sum(written) == len(cache) == len(wanted), "somebody writes what anybody wanted"
        last.close()
