"""Small caches whose content follows from the key, so that whatever a reader gets can be judged."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hydrax_gpu._cache import ArrayFormat, Descriptor, Keys, Store, StoreSpec, fingerprint
from hydrax_gpu._cache.system import System
from hydrax_gpu._kernels.choice import choose

ARRAYS = (
    ArrayFormat("x", (5, 3), "float32", 60),
    ArrayFormat("label", (), "int64", 8),
    ArrayFormat("text", (200,), "uint8", 200, "zstd"),
    ArrayFormat("nothing", (0, 4), "float32", 0),
)
LENGTH = 1000


def descriptor(**changes: Any) -> Descriptor:
    """What the caches here are of."""
    known = Descriptor(ARRAYS, LENGTH, 7, "item", True, "batchwise", fingerprint(range(LENGTH)), "v1")
    return replace(known, **changes)


def spec(location: Path | str, *, readonly: bool = False, **changes: Any) -> StoreSpec:
    return StoreSpec(str(location), descriptor(**changes), readonly, choose().path)


def keys(items: Sequence[int], passes: Sequence[int] | None = None) -> Keys:
    return Keys(np.array(items, np.int64), np.array([0] * len(items) if passes is None else passes, np.int64))


def content(key: Keys) -> tuple[dict[str, np.ndarray[Any, Any]], list[dict[str, Any] | None]]:
    """Arrays and additional data of keys."""
    number = key.items * 1001 + key.passes
    arrays = {
        "x": (number[:, None] * 31 + np.arange(15)).astype(np.float32).reshape(-1, 5, 3),
        "label": number.astype(np.int64),
        "text": ((number[:, None] + np.arange(200) // 20) % 251).astype(np.uint8),
        "nothing": np.zeros((len(number), 0, 4), np.float32),
    }
    additional = [
        {"item": each, "parts": (each, [None, "ü" * (each % 4)]), "vector": np.arange(each % 3)} if each % 5 else None
        for each in number.tolist()
    ]
    return arrays, additional


def same(got: Any, wanted: Any) -> bool:
    """Equal in value and type."""
    if type(got) is not type(wanted):
        return False
    if isinstance(wanted, np.ndarray | np.generic):
        return got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()
    if isinstance(wanted, dict):
        return list(got) == list(wanted) and all(same(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    return bool(got == wanted) or got != got


def read(store: Store, key: Keys) -> set[int]:
    """Reads keys, and makes sure that whatever is served is right; the offsets of those that are not served."""
    arrays, additional = content(key)
    views = {name: np.full_like(array, 77) for name, array in arrays.items()}
    result = store.read(key, views)
    bad = {offset for offset, _ in result.bad}
    for offset in range(len(key.items)):
        if offset in bad:
            assert result.additional[offset] is None
            continue
        for name, array in arrays.items():
            assert views[name][offset].tobytes() == array[offset].tobytes(), f"wrong data: {name} of row {offset}"
        assert same(result.additional[offset], additional[offset]), f"wrong additional data of row {offset}"
    return bad


def write(store: Store, key: Keys) -> int:
    return store.write(key, *content(key))


def fill(location: Path | str, *batches: Sequence[int], system: System | None = None) -> Store:
    """A store that has written batches of items."""
    store = Store.open(spec(location), system=system)
    for batch in batches:
        assert write(store, keys(batch)) == len(set(batch))
    return store


def journals(location: Path) -> list[str]:
    """Names of the writers."""
    return sorted(path.stem for path in location.glob("*.journal"))


class Watched(System):
    """Calls `before(number, name, arguments)` ahead of every call that changes the disk, counted from 0."""

    def __init__(self, before: Callable[[int, str, tuple[Any, ...]], None]) -> None:
        self.count = 0
        self._before = before

    def _change(self, name: str, *arguments: Any) -> Any:
        number, self.count = self.count, self.count + 1
        self._before(number, name, arguments)
        return getattr(System, name)(self, *arguments)

    def make_directory(self, path: str) -> None:
        self._change("make_directory", path)

    def create(self, path: str) -> int:
        return self._change("create", path)

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> None:
        self._change("write", fd, buffers, offset)

    def link(self, source: str, target: str) -> None:
        self._change("link", source, target)

    def remove(self, path: str) -> None:
        self._change("remove", path)


def refusing(at: int, error: int) -> Watched:
    """A system of which all changes from number `at` on fail, as a disk that is full does; half is written before."""

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number >= at:
            if name == "write" and number == at:
                half = half_of(arguments[1])
                os.pwrite(arguments[0], half, arguments[2])
            raise OSError(error, os.strerror(error))

    return Watched(before)


class Impatient(System):
    """Ten seconds are over after each pause."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def clock(self) -> float:
        return super().clock() + self._ahead

    def pause(self, seconds: float) -> None:
        self._ahead += 10


def half_of(buffers: Sequence[Any], share: float = 0.5) -> bytes:
    """The first part of some buffers."""
    whole = b"".join(bytes(buffer) for buffer in buffers)
    return whole[: int(len(whole) * share)]


class Turns:
    """Lets threads go on one at a time, each up to its next call of the operating system, in an order that is given.

    A thread that ends, by whatever it raises, is out.
    """

    def __init__(self, bodies: Sequence[Callable[[], None]], choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._baton = threading.Condition()
        self._turn: int | None = None
        self._waiting: set[int] = set()
        self._local = threading.local()
        self.ended: dict[int, BaseException | None] = {}
        self._threads = [threading.Thread(target=self._body, args=(number, body)) for number, body in enumerate(bodies)]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        count = len(self._threads)
        while len(self.ended) < count:
            with self._baton:
                self._baton.wait_for(lambda: self._turn is None and len(self._waiting) + len(self.ended) == count)
                if len(self.ended) < count:
                    ready = sorted(self._waiting)
                    self._turn = ready[self._choose(len(ready))]
                    self._baton.notify_all()
        for thread in self._threads:
            thread.join()

    def number(self) -> int | None:
        """Which of the threads calls."""
        return getattr(self._local, "number", None)

    def wait(self) -> None:
        """Waits for the calling thread's turn."""
        number = self.number()
        if number is None:
            return
        with self._baton:
            self._turn = None
            self._waiting.add(number)
            self._baton.notify_all()
            self._baton.wait_for(lambda: self._turn == number)
            self._waiting.discard(number)

    def _body(self, number: int, body: Callable[[], None]) -> None:
        self._local.number = number
        error: BaseException | None = None
        try:
            self.wait()
            body()
        except BaseException as raised:
            # without the frames, which would keep files open
            error = raised.with_traceback(None)
            error.__context__ = None
        with self._baton:
            self.ended[number] = error
            self._turn = None
            self._baton.notify_all()
