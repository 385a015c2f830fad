"""Groups with caches, an encoder, and runs over them; for the tests of caching as a user sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hydrax_gpu import Batch, DataGroup, Dataloader

LOADED = {"x": ((3,), np.float32, np.float32), "seed": ((2,), np.uint32, np.uint32)}
CACHED = {"z": ((5,), ml_dtypes.bfloat16, ml_dtypes.bfloat16), "w": ((), np.float32, np.float32)}


def encoded(location: Path | None, size: int = 4, data: Any = range(22), **options: Any) -> DataGroup[Any]:
    options = {"loader_arrays": LOADED, "cache_arrays": CACHED, "remainder": "short"} | options
    return DataGroup(size, data, cache_location=location, **options)


def direct(location: Path | None, size: int = 4, data: Any = range(22), **options: Any) -> DataGroup[Any]:
    options = {"loader_arrays": LOADED, "remainder": "short"} | options
    return DataGroup(size, data, cache_location=location, **options)


def encode(batch: Batch[Any]) -> None:
    """A frozen encoder; does nothing to a batch that is cached."""
    import jax.numpy as jnp

    if batch.uncached and batch.group.cache_layouts is not None:
        x = batch.arrays["x"]
        z = jnp.concatenate([x, x[:, :2] * 2], 1).astype(jnp.bfloat16)
        extra = {"item": [int(i) for i in batch.indices], "text": [(f"item {i}", b"\0", [i]) for i in batch.indices]}
        batch.cache({"z": z, "w": x.sum(1)}, extra)


def content(batch: Batch[Any]) -> tuple[Any, ...]:
    """All that a batch holds, down to the bit."""
    arrays = {name: np.asarray(array).tobytes() for name, array in batch.arrays.items()}
    return list(batch.indices), arrays, {key: list(values) for key, values in batch.additional.items()}


def run(
    load: Any, training: Any, do: Callable[[Batch[Any]], None] = encode, **options: Any
) -> tuple[list[tuple[Any, ...]], list[bool], Dataloader[Any]]:
    """The contents of a run's batches after `do`, which of them came uncached, and the loader, which is closed."""
    options = {"executor": "inline", "end_at": ("epoch", 1), "timeout_sec": 30} | options
    contents: list[tuple[Any, ...]] = []
    uncached: list[bool] = []
    with Dataloader(load, training, **options) as loader:
        for batch in loader:
            uncached.append(batch.uncached)
            do(batch)
            contents.append(content(batch))
            del batch
    return contents, uncached, loader


def damage(location: Path, record: int, size: int, array: int = 0) -> None:
    """Flips a bit in one record of the first writer's file of an array whose records have `size` bytes."""
    path = min(location.glob(f"*.{array}.bin"))
    data = bytearray(path.read_bytes())
    data[record * size] ^= 1
    path.write_bytes(data)
