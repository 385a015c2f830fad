"""Loader functions for the tests' workers. Worker processes import this module, so it must not import jax."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from typing import Any

import numpy as np


def split(seed: int | None) -> tuple[int, int]:
    """A seed as two 32-bit words, the low one first, as JAX keeps no more by default; None is what no seed gives."""
    return (0xFFFFFFFF, 0xFFFFFFFF) if seed is None else (seed & 0xFFFFFFFF, seed >> 32)


def joined(words: Any) -> int | None:
    """The seed of two words."""
    low, high = (int(word) for word in words)
    return None if high == 0xFFFFFFFF else low | high << 32


def fill(item: Any, arrays: Any, seed: int | None) -> None:
    """Every array gets the item's number."""
    for array in arrays.values():
        array[...] = item


def fill_and_tell(item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
    """As `fill`; returns the item under "item", and for odd ones a text under "odd"."""
    fill(item, arrays, seed)
    return {"item": item, "odd": f"odd {item}"} if item % 2 else {"item": item}


def fill_and_tell_of_odd(item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
    """As `fill`; even items return nothing at all."""
    fill(item, arrays, seed)
    return {"item": item} if item % 2 else None


def record(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Puts the item into `x`, the seed's words into `seed`, and returns both."""
    arrays["x"][...] = item
    arrays["seed"][...] = split(seed)
    return {"item": item, "seed": seed}


def draw(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """As `record`, and `x` gets random numbers drawn with the seed; validation gets the item's number."""
    arrays["x"][...] = item if seed is None else np.random.default_rng(seed).random(arrays["x"].shape)
    arrays["seed"][...] = split(seed)
    return {"item": item, "seed": seed}


def two_arrays(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """`x` gets the item's number, `y` its negative."""
    arrays["x"][...] = item
    arrays["y"][...] = -item
    return {"item": item}


def pid(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """As `fill`; tells which process did it."""
    fill(item, arrays, seed)
    return {"pid": os.getpid()}


def returns_a_list(item: int, arrays: Any, seed: int | None) -> Any:
    """Returns what a loader function must not return."""
    fill(item, arrays, seed)
    return [item]


def returns_a_lambda(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Item 2 returns what cannot be pickled."""
    fill(item, arrays, seed)
    return {"x": (lambda: 0) if item == 2 else item}


def die(item: int, arrays: Any, seed: int | None) -> None:
    """The process that loads item 5 is killed."""
    fill(item, arrays, seed)
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)


class FailsFor:
    """As `fill`, but raises for some items; with `told`, as `fill_and_tell`."""

    def __init__(self, *items: int, told: bool = False) -> None:
        self.items = items
        self.told = told

    def __call__(self, item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
        if item in self.items:
            raise ValueError(f"item {item} is broken")
        fill(item, arrays, seed)
        return {"item": item} if self.told else None


class WritesPid:
    """A startup function: writes the process's id, in 16 bytes, into a named pipe that the test reads."""

    def __init__(self, pipe: str) -> None:
        self.pipe = pipe

    def __call__(self) -> None:
        with open(self.pipe, "wb", buffering=0) as pipe:
            pipe.write(b"%16d" % os.getpid())


def fails_to_start() -> None:
    """A startup function that raises."""
    raise OSError("no such licence server")


def seeds_the_legacy_generator(item: int, arrays: Any, seed: int | None) -> None:
    """What scripts for 32-bit seeds do."""
    arrays["x"][...] = np.random.RandomState(seed).rand()


class Unpicklable(Exception):
    """An exception with something in it that no other process can have."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.keep = lambda: 0


def raises_the_unpicklable(item: int, arrays: Any, seed: int | None) -> None:
    """Raises what cannot be sent."""
    raise Unpicklable("with a lock")


def returns_a_megabyte(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """More than a socket's buffer takes at once."""
    fill(item, arrays, seed)
    return {"blob": bytes(1_000_000)}


def niceness(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Tells the process's niceness."""
    fill(item, arrays, seed)
    return {"nice": os.nice(0)}


def sleeps_for_ever(item: int, arrays: Any, seed: int | None) -> None:
    """Prints its process id, and never returns."""
    os.write(1, f"{os.getpid()}\n".encode())
    while True:
        signal.pause()


class WaitsForItem:
    """As `fill`, but one item takes so long that a consumer comes to wait for it."""

    def __init__(self, item: int) -> None:
        self.item = item

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        fill(item, arrays, seed)
        if item == self.item:
            select.select([], [], [], 0.3)


class FailsAtFirst:
    """As `fill`, but each item raises a number of times, in each process, before it can be had."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.tries: dict[int, int] = {}

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        self.tries[item] = self.tries.get(item, 0) + 1
        if self.tries[item] <= self.times:
            arrays["y"][...] = -1
            raise ConnectionError(f"item {item} is not there yet")
        fill(item, arrays, seed)


class FailsAfterTelling:
    """As `fill_and_tell`, but one item is rewritten half and then raises."""

    def __init__(self, item: int) -> None:
        self.item = item

    def __call__(self, item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
        if item == self.item:
            arrays["y"][...] = -1
            raise ValueError(f"item {item} is broken")
        return fill_and_tell(item, arrays, seed)


class Lethal:
    """As `fill`, but some items end the process that loads them: "kill", "segfault" or "exit"."""

    def __init__(self, how: str, *items: int) -> None:
        self.how = how
        self.items = items

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        fill(item, arrays, seed)
        if item in self.items:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "segfault":
                ctypes.string_at(0)
            else:
                os._exit(3)


class DiesIdle:
    """As `fill`, but every tenth item has its process killed when it waits for more to do."""

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        fill(item, arrays, seed)
        if item % 10 == 9:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()


class StartsOnce:
    """A startup function that works for the first process that calls it, and for no other."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise OSError("the licence is taken") from None


def sleeps_for_ever_quietly(item: int, arrays: Any, seed: int | None) -> None:
    """Never returns."""
    while True:
        signal.pause()


class Unreadable:
    """Pickles anywhere, and unpickles in workers only."""

    def __reduce__(self) -> tuple[Any, ...]:
        return only_in_a_worker, ()


def only_in_a_worker() -> str:
    """Raises outside of workers."""
    from hydrax_gpu import is_worker

    if not is_worker():
        raise RuntimeError("not in this process")
    return "read"


def returns_the_unreadable(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Item 2 returns what can be pickled and not unpickled."""
    fill(item, arrays, seed)
    return {"x": Unreadable() if item == 2 else item}


def raises_a_base_exception(item: int, arrays: Any, seed: int | None) -> None:
    """Items 5, 6 and 7 raise what is no Exception."""
    fill(item, arrays, seed)
    if item in (5, 6, 7):
        raise {5: KeyboardInterrupt(), 6: GeneratorExit(), 7: SystemExit(3)}[item]


class WritesToTheSocket:
    """As `fill`, but one item writes to every socket that it finds open."""

    def __init__(self, item: int) -> None:
        self.item = item

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        fill(item, arrays, seed)
        if item == self.item:
            for fd in os.listdir("/proc/self/fd"):
                try:
                    if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                        os.write(int(fd), b"\4\0\0\0oops")
                except OSError:
                    continue


def acquire_natively() -> None:
    """Waits for ever outside of Python, with the GIL: what a deadlock in a native library looks like."""
    ctypes.PyDLL(None).pause()


class Hangs:
    """As `fill`, but one item never comes: "in Python" or "in a native call"."""

    def __init__(self, how: str, item: int) -> None:
        self.how = how
        self.item = item

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        fill(item, arrays, seed)
        while item == self.item:
            if self.how == "in Python":
                threading.Event().wait()
            else:
                acquire_natively()


def hang_at_start() -> None:
    """A startup function that never returns."""
    threading.Event().wait()


def record_of(item: int, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """What `writes_records` puts into an array: random numbers, `splits` in ascending order, `length` within 0 to 9."""
    rng = np.random.default_rng([item, *name.encode()])
    if name == "splits":
        return np.concatenate([[0], np.sort(rng.integers(0, 10, shape[0] - 1))]).astype(dtype)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 10 if name == "length" else 100, shape).astype(dtype)
    return rng.random(shape).astype(dtype)


def writes_records(item: int, arrays: Any, seed: int | None) -> None:
    """Random numbers that depend on the item and the array's name alone."""
    for name, array in arrays.items():
        array[...] = record_of(item, name, array.shape, array.dtype)


class WritesBadSplits:
    """As `writes_records`, but the splits of some items descend, for the first `times` times in each process."""

    def __init__(self, *items: int, times: int = 1 << 30) -> None:
        self.items = items
        self.times = times
        self.tries: dict[int, int] = {}

    def __call__(self, item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        writes_records(item, arrays, seed)
        self.tries[item] = self.tries.get(item, 0) + 1
        if item in self.items and self.tries[item] <= self.times:
            arrays["splits"][-1] = -1
        return {"try": self.tries[item]}


def tells_modules(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """As `fill`; tells what the process has imported."""
    fill(item, arrays, seed)
    return {"modules": sorted(sys.modules)}


def fill_with_noise(item: int, arrays: Any, seed: int | None) -> None:
    """Numbers that are the item's alone, and tame enough for any decode."""
    rng = np.random.default_rng(item)
    for array in arrays.values():
        array[...] = rng.integers(0, 100, array.shape)


def fill_ragged(item: int, arrays: Any, seed: int | None) -> None:
    """`values` and `splits` of two sequences."""
    fill_with_noise(item, arrays, seed)
    arrays["splits"][...] = (0, item % 5, item % 5 + item % 4)


class Forbidden:
    """For items that must not be loaded, because they are in a cache."""

    def __call__(self, item: Any, arrays: Any, seed: int | None) -> None:
        raise AssertionError(f"item {item} was loaded")


class CountsCalls:
    """As `draw`, and appends a byte to a file for each call, whichever process it is in."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, b".")
        os.close(fd)
        return draw(item, arrays, seed)

    @property
    def calls(self) -> int:
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0


class CountsRows(CountsCalls):
    """The same as a loader of several rows."""

    def load_rows(self, items: Any, arrays: Any, seeds: Any) -> Any:
        return [self(*each) for each in zip(items, arrays, seeds, strict=True)]


def noise(item: int, arrays: Any, seed: int | None) -> None:
    """Gaussian noise of the item's own in `x`, and its number in `number`."""
    arrays["x"][...] = np.random.default_rng(item).standard_normal(arrays["x"].shape) * (1 + item)
    arrays["number"][...] = item


def noise_and_text(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """As `noise`, and returns a text."""
    noise(item, arrays, seed)
    return {"text": f"item {item}"}


def noise_with_nan(item: int, arrays: Any, seed: int | None) -> None:
    """As `noise`, with a NaN in item 3 and an infinity in item 9."""
    noise(item, arrays, seed)
    if item in (3, 9):
        arrays["x"].reshape(-1)[-1] = {3: np.nan, 9: np.inf}[item]
