"""The loader function of the chaos test. Workers import this module, so it must not import jax."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Broken(Exception):
    """What bad items raise."""


@dataclass
class Load:
    """Fills arrays with what item and seed determine, and does to some items what the world may do to them.

    Attributes:
        raising: items that raise, always.
        lethal: items that end their process, each in a way of its own; with `clean`, they raise.
        shy: items that raise at the first try.
        talkative: items that return a lot of additional data.
        hanging: items that never come.
        clean: nothing worse than raising happens.
    """

    raising: frozenset[int] = frozenset()
    lethal: frozenset[int] = frozenset()
    shy: frozenset[int] = frozenset()
    talkative: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()
    clean: bool = False
    tries: dict[tuple[int, int], int] = field(default_factory=dict["tuple[int, int]", int])

    def __call__(self, item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
        if item in self.hanging and not self.clean:
            threading.Event().wait()
        if item in self.shy and not self.clean:
            key = threading.get_ident(), item  # two threads may be at the same item, in different epochs
            tries = self.tries[key] = self.tries.get(key, 0) + 1
            if tries % 2:
                arrays["x"][...] = -1
                raise Broken(f"item {item} is shy")
        arrays["x"][...] = np.arange(arrays["x"].size, dtype=np.int32) * item
        arrays["seed"][...] = (item, 0 if seed is None else seed & 0xFFFF)
        if item in self.lethal and not self.clean:
            _die(item)
        if item in self.raising or item in self.lethal:
            raise Broken(f"item {item} is broken")
        if item in self.talkative:
            return {"item": item, "blob": bytes([item % 251]) * 300_000}
        return {"item": item} if item % 3 == 0 else None


def _die(item: int) -> None:
    if item % 3 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    elif item % 3 == 1:
        ctypes.string_at(0)
    os._exit(item % 100 + 1)


def digest(values: Any) -> int:
    """A short name for a value's content."""
    return zlib.crc32(repr(values).encode())
