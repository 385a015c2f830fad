"""What the GPU's tests do, on any `Machine`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydrax_gpu import DataGroup, Dataloader
from tests.gpu.load import MARKS, mark, spread
from tests.gpu.machines import Machine


@dataclass
class Lifetime:
    """What came of `lifetime`."""

    batches: int
    wrong: int
    first: str = ""


def marked(batches: int, rows: int, item_bytes: int) -> DataGroup[int]:
    arrays = {"x": ((item_bytes,), np.uint8, np.uint8), "y": ((), np.int32, np.int32)}
    return DataGroup(rows, range(rows * batches), loader_arrays=arrays)


def lifetime(
    machine: Machine,
    batches: int,
    *,
    depth: int = 3,
    held: int | None = None,
    rows: int = 8,
    item_bytes: int = 8192,
    executor: Any = "thread",
) -> Lifetime:
    """Drops batches while what is to read them has yet to begin, and compares what was read with what was in them.

    Again and again: the device's computations are held; `held` batches are taken, a computation that reads each is
    enqueued, and the batch is dropped; the computations are let go; one more batch is taken and read, so that all
    fences of the held ones are enqueued before the next hold.

    With the fence no more than `depth` batches are sure to come while computations are held, which is the default.
    Without it, any number; with twice as many, slots are certain to be filled again under those that read them.
    """
    held = depth if held is None else held
    found = Lifetime(0, 0)
    reads: deque[tuple[Any, list[int]]] = deque()
    with machine.in_use(), Dataloader(
        mark, marked(batches, rows, item_bytes), depth=depth, loader_count=2, executor=executor, delivery="alias",
        end_at=("epoch", 1), timeout_sec=30,
    ) as loader:  # fmt: skip
        # compiles and loads what reads, which must not happen while computations are held
        reads.append(_read_and_drop(machine, next(loader)))
        _compare(machine, *reads.popleft(), found)
        left = batches - 1
        while left:
            open_latch = machine.hold()
            try:
                for _ in range(min(held, left)):
                    reads.append(_read_and_drop(machine, next(loader)))
                    left -= 1
            finally:
                open_latch()
            if left:
                reads.append(_read_and_drop(machine, next(loader)))
                left -= 1
            while len(reads) > (8 * held if left else 0):
                _compare(machine, *reads.popleft(), found)
    assert found.batches == batches
    return found


def _read_and_drop(machine: Machine, batch: Any) -> tuple[Any, list[int]]:
    return machine.read(batch.arrays), list(batch.indices)


def _compare(machine: Machine, read: Any, indices: list[int], found: Lifetime) -> None:
    got = machine.results(read)
    wanted = np.array([(i % MARKS, i % MARKS, i) for i in indices])
    found.batches += 1
    if not np.array_equal(got, wanted):
        found.wrong += 1
        found.first = found.first or f"batch {found.batches - 1}: got {got.tolist()}, wanted {wanted.tolist()}"


def kept_by_copy(machine: Machine, batches: int, check: Callable[[Any], None]) -> int:
    """Batches of `delivery="copy"` may be kept for ever: all of them, while the loader goes on; returns how many."""
    kept: list[tuple[Any, list[int]]] = []
    with machine.in_use(), Dataloader(
        mark, marked(batches, 8, 4096), depth=2, loader_count=2, executor="thread", delivery="copy",
        end_at=("epoch", 1), timeout_sec=30,
    ) as loader:  # fmt: skip
        for batch in loader:
            check(batch)
            kept.append((dict(batch.arrays), list(batch.indices)))
            del batch
    found = Lifetime(0, 0)
    for arrays, indices in kept:
        _compare(machine, machine.read(arrays), indices, found)
    assert not found.wrong, found.first
    return found.batches


DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "complex64"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2"),
]
CONVERSIONS = [
    ("uint8", "bfloat16"), ("uint8", "float32"), ("int16", "float16"), ("int32", "float32"), ("float32", "bfloat16"),
    ("float32", "int8"), ("int32", "uint8"),
]  # fmt: skip
"""Those to integers are left to XLA."""


def check_dtypes(source: str, wanted: str, delivery: Any, *, platform: str) -> None:
    """Two arrays of `source` arrive as `wanted`, with their values, on the platform."""
    declared = {"a": ((5, 3), source, wanted), "b": ((), source, wanted)}
    group = DataGroup(8, range(64), loader_arrays=declared)
    with Dataloader(
        spread, group, loader_count=2, executor="thread", delivery=delivery, end_at=("epoch", 2), timeout_sec=30
    ) as loader:
        for batch in loader:
            expected = _spread(batch.indices, wanted)
            for name in declared:
                array = batch.arrays[name]
                assert array.dtype == np.dtype(wanted)
                assert {device.platform for device in array.devices()} == {platform}
                np.testing.assert_array_equal(np.asarray(array), expected[name])
                del array
            del batch
    assert loader.report().delivery == (delivery,)


def _spread(indices: Any, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    rows = {"a": np.empty((len(indices), 5, 3), dtype), "b": np.empty((len(indices),), dtype)}
    for row, item in enumerate(indices):
        spread(item, {"a": rows["a"][row, ...], "b": rows["b"][row, ...]}, None)
    return rows
