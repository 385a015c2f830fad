"""The loader functions and the shapes that they fill. Workers import this module: no jax here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SMALL_ITEMS = 1 << 15
LARGE_SHAPE = (512, 1024, 3)
LARGE_ITEMS = 256
LARGE_FILE = "HYDRAX_BENCHMARK_LARGE"
"""Environment variable with the path of the large items' file; workers inherit it."""
RECORD_SHAPE = (224, 224, 3)
RECORD_ITEMS = 512
RECORD_FILE = "HYDRAX_BENCHMARK_RECORDS"
"""Environment variable with the path of the records' file; workers inherit it."""
FOLDER = "HYDRAX_BENCHMARK_FOLDER"
"""Environment variable with a folder for what a loader must write before it can load."""
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""Of ImageNet's pixels, by channel: what records are normalised with."""
SCALE = (1 / STD).astype(np.float32)
TOLERANCE = 1e-4
"""Between normalised records by different arithmetic; a step of one in the bytes is 170 times that."""


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


def load_record(data: int, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """Normalise 147 KiB out of the page cache to `float32`."""
    image = arrays["image"]
    np.subtract(records()[data], MEAN, out=image)
    np.multiply(image, SCALE, out=image)
    arrays["label"][...] = data


def load_bytes(data: int, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """Copy the same 147 KiB as they are."""
    arrays["image"][...] = records()[data]
    arrays["label"][...] = data


@cache
def large_items() -> np.ndarray:
    """All large items, mapped."""
    return np.memmap(os.environ[LARGE_FILE], np.uint8, "r", shape=(LARGE_ITEMS, *LARGE_SHAPE))


@cache
def records() -> np.ndarray:
    """All records, mapped."""
    return np.memmap(os.environ[RECORD_FILE], np.uint8, "r", shape=(RECORD_ITEMS, *RECORD_SHAPE))


def make_large_file(path: Path) -> None:
    """Write the large items; what was just written is in the page cache.

    It is written with write(), not through a mapping: the page cache then holds it in large pages, as it holds a file
    that was read from a disk, and mapping it is an order of magnitude cheaper.
    """
    _write_random(path, LARGE_ITEMS, LARGE_SHAPE)


def make_record_file(path: Path) -> None:
    """Write the records, in the same way."""
    _write_random(path, RECORD_ITEMS, RECORD_SHAPE)


def _write_random(path: Path, items: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(items):
            file.write(random.bytes(int(np.prod(shape))))


@dataclass(frozen=True)
class Task:
    """What a loader is asked to load."""

    name: str
    """"items", "bytes" or "records"."""
    batch: int
    data: range
    """The items, in order."""
    load: Any
    """Fills the arrays of one: `load(item, arrays, seed)`."""
    arrays: dict[str, tuple[tuple[int, ...], str]]
    """Item shape and dtype of each array."""
    identify: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    """Which items a batch holds; raises AssertionError if the values are not theirs."""
    workers: int = 2
    depth: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments that only some loaders know."""
    record: tuple[int, ...] = ()
    """The shape of an item's bytes in `file`."""
    random: bool = False
    """Whether `load` needs a seed."""

    @property
    def file(self) -> Path:
        """The bytes of all items, one after the other, for a loader that reads them itself."""
        return Path(os.environ[{"bytes": LARGE_FILE, "records": RECORD_FILE}[self.name]])

    @property
    def folder(self) -> Path:
        """Where a loader may keep what it must write before it can load, for all rounds."""
        return Path(os.environ[FOLDER])

    def raw(self, items: Sequence[int]) -> np.ndarray:
        """The bytes of consecutive items as they stand in the file."""
        return (large_items() if self.name == "bytes" else records())[items[0] : items[-1] + 1]

    def check(self, first: Mapping[str, Any]) -> None:
        """Raise if the first batch is not the first items."""
        if (self.items(first) != np.arange(self.batch)).any():
            raise AssertionError("the first batch does not hold the first items")

    def check_epoch(self, batches: Iterator[Mapping[str, Any]]) -> None:
        """Raise unless the first epoch has each item once, with the right values.

        A loader that does not load would be the fastest.
        """
        seen = np.zeros(len(self.data), np.int64)
        for _ in range(len(self.data) // self.batch):
            np.add.at(seen, self.items(next(batches)), 1)
        if (seen != 1).any():
            raise AssertionError(
                f"of the {len(seen)} items of an epoch, {(seen == 0).sum()} were not loaded, "
                f"and {(seen > 1).sum()} more than once"
            )

    def items(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Which items a batch holds; raises AssertionError if it is not one of this task's batches."""
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        for name, (shape, dtype) in self.arrays.items():
            if name not in arrays:
                raise AssertionError(f"a batch has no array {name!r}, only {sorted(arrays)}")
            found, wanted = arrays[name], (self.batch, *shape)
            if (
                found.shape not in (wanted, wanted if shape else (self.batch, 1))
                or found.dtype.kind != np.dtype(dtype).kind
            ):
                raise AssertionError(f"{name!r} is {found.dtype} {found.shape}, and not {dtype} {wanted}")
        numbers = self.identify(arrays)
        if not ((numbers >= 0) & (numbers < len(self.data))).all():
            raise AssertionError(f"a batch holds items {numbers.min()} to {numbers.max()} of {len(self.data)}")
        return numbers


def _labels(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return arrays["label"].astype(np.int64).ravel()


def _identify_small(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    numbers = _labels(arrays)
    wrong = (arrays["image"] != (numbers & 255).reshape(-1, 1, 1, 1)).any((1, 2, 3))
    return _right(numbers, wrong)


def _identify_large(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Items have no label; the first bytes tell which one it should be."""
    image, items = arrays["image"], large_items()
    known = {bytes(item[0, :4].tobytes()): number for number, item in enumerate(items)}
    numbers = np.array([known.get(row[0, :4].tobytes(), -1) for row in image])
    wrong = [number < 0 or (row != items[number]).any() for number, row in zip(numbers, image, strict=True)]
    return _right(numbers, np.array(wrong))


def _identify_records(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    numbers = _labels(arrays)
    known = records()
    wrong = [
        not 0 <= number < len(known) or not (abs(row - (known[number] - MEAN) * SCALE) <= TOLERANCE).all()
        for number, row in zip(numbers.tolist(), arrays["image"], strict=True)
    ]
    return _right(numbers, np.array(wrong))


def _right(numbers: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    if wrong.any():
        raise AssertionError(f"{wrong.sum()} of the {len(wrong)} items of a batch have wrong values")
    return numbers


def small(batch: int, shape: tuple[int, ...] = (8, 8, 3), depth: int = 3, **options: Any) -> Task:
    """Cheap items: an image filled with one number, and a label."""
    arrays = {"image": (shape, "uint8"), "label": ((), "int32")}
    return Task("items", batch, range(SMALL_ITEMS), load_small, arrays, _identify_small, depth=depth, options=options)


def large(batch: int, **options: Any) -> Task:
    """Items that are nothing but bytes."""
    arrays = {"image": (LARGE_SHAPE, "uint8")}
    return Task(
        "bytes", batch, range(LARGE_ITEMS), load_large, arrays, _identify_large, options=options, record=LARGE_SHAPE
    )


def normalized(batch: int, workers: int = 1) -> Task:
    """Pictures of bytes that become `float32`, and a label: something to do, and bytes to move."""
    arrays = {"image": (RECORD_SHAPE, "float32"), "label": ((), "int32")}
    return Task(
        "records",
        batch,
        range(RECORD_ITEMS),
        load_record,
        arrays,
        _identify_records,
        workers=workers,
        record=RECORD_SHAPE,
    )
