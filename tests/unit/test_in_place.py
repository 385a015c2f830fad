"""What the loader function writes is what JAX reads: no item is copied, stacked or allocated on its way."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np

from hydrax_gpu import DataGroup, Dataloader


def test_the_loader_function_writes_where_jax_reads() -> None:
    written: dict[int, int] = {}

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["image"][...] = item
        written[item] = arrays["image"].ctypes.data

    group = DataGroup(4, range(40), loader_arrays={"image": ((5, 7), np.float32, np.float32)})
    with Dataloader(load, group, executor="inline", delivery="alias", end_at=("epoch", 1)) as loader:
        for batch in loader:
            begin, row = batch.arrays["image"].unsafe_buffer_pointer(), 5 * 7 * 4
            assert [written[item] for item in batch.data] == [begin + number * row for number in range(4)]
            del batch


def test_no_item_is_allocated() -> None:
    size = 1 << 20

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["bytes"].fill(item & 255)

    group = DataGroup(8, range(10**6), loader_arrays={"bytes": ((size,), np.uint8, np.uint8)})
    with Dataloader(load, group, executor="inline", delivery="alias") as loader:
        for _ in range(5):
            next(loader)
        tracemalloc.start()
        try:
            for _ in range(10):
                next(loader)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < size / 4, f"{peak:,} bytes were allocated for items of {size:,}"


def test_a_shuffled_billion_items_take_no_memory_and_are_entered_anywhere() -> None:
    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item % 1000

    group = DataGroup(64, range(10**9), loader_arrays={"x": ((), np.int32, np.int32)}, shuffle_first=True)
    for start in (0, 10, 10**6, 10**7):
        loader = Dataloader(load, group, executor="inline", start_at=(0, start))
        tracemalloc.start()
        try:
            with loader:
                batch = next(loader)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert batch.group_index == start and len(set(batch.indices)) == 64
        assert peak < 4 << 20, f"{peak:,} bytes for a shuffle that is a formula"
