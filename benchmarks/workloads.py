"""The loader functions and the shapes that they fill. Workers import this module: no jax here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SMALL_ITEMS = 1_000_000
LARGE_SHAPE = (512, 1024, 3)
LARGE_ITEMS = 256
LARGE_FILE = "HYDRAX_BENCHMARK_LARGE"
"""Environment variable with the path of the large items' file; workers inherit it."""


def load_small(data: int, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """An item that costs almost nothing, so that what is left is the loader."""
    arrays["image"].fill(data & 255)
    arrays["label"][...] = data


def load_small_and_tell(data: int, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """The same, and tells which process loaded it and whether that one has imported jax."""
    arrays["image"].fill(data & 255)
    arrays["label"][...] = data
    arrays["pid"][...] = os.getpid()
    arrays["jax"][...] = "jax" in sys.modules


def load_large(data: int, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """Copy 1.5 MiB out of the page cache."""
    np.copyto(arrays["image"], large_items()[data])


@cache
def large_items() -> np.ndarray:
    """All large items, mapped."""
    return np.memmap(os.environ[LARGE_FILE], np.uint8, "r", shape=(LARGE_ITEMS, *LARGE_SHAPE))


def make_large_file(path: Path) -> None:
    """Write the large items; what was just written is in the page cache.

    It is written with write(), not through a mapping: the page cache then holds it in large pages, as it holds a file
    that was read from a disk, and mapping it is an order of magnitude cheaper.
    """
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(LARGE_ITEMS):
            file.write(random.bytes(int(np.prod(LARGE_SHAPE))))


@dataclass(frozen=True)
class Task:
    """What a loader is asked to load."""

    batch: int
    data: range
    load: Any
    arrays: dict[str, tuple[tuple[int, ...], str]]
    """Item shape and dtype of each array."""
    workers: int = 2
    depth: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments that only some loaders know."""

    def check(self, first: Mapping[str, Any]) -> None:
        """Raise if the first batch is not the first items: a loader that does not load would be the fastest."""
        image = np.asarray(first["image"])
        if "label" in first:
            expected = np.arange(self.batch)
            ok = (np.asarray(first["label"]).ravel() == expected).all()
            ok = ok and (image == (expected & 255).reshape(-1, 1, 1, 1)).all()
        else:
            ok = (image == large_items()[: self.batch]).all()
        if not ok or len(image) != self.batch:
            raise AssertionError("the first batch does not hold the first items")


def small(batch: int, shape: tuple[int, ...] = (8, 8, 3), depth: int = 3, **options: Any) -> Task:
    """Cheap items: an image filled with one number, and a label."""
    arrays = {"image": (shape, "uint8"), "label": ((), "int32")}
    return Task(batch, range(SMALL_ITEMS), load_small, arrays, depth=depth, options=options)


def large(batch: int, **options: Any) -> Task:
    """Items that are nothing but bytes."""
    return Task(batch, range(LARGE_ITEMS), load_large, {"image": (LARGE_SHAPE, "uint8")}, options=options)
