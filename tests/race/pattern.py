"""A loader whose every byte tells which item it belongs to: a batch that changes under a reader shows itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu import DataGroup

ITEM = 600


def expected(index: int, seed: int | None) -> npt.NDArray[np.uint8]:
    """The bytes of an item: its index and seed, over and over."""
    words = np.array([index, 0 if seed is None else seed], np.int64)
    return np.tile(words.view(np.uint8), -(-ITEM // 16))[:ITEM]


def fill(data: int, arrays: Mapping[str, npt.NDArray[Any]], seed: int | None) -> None:
    """Writes the pattern, in two halves, so that a half-written row is neither the old nor the new pattern."""
    pattern = expected(data, seed)
    view = arrays["pattern"]
    view[: ITEM // 2] = pattern[: ITEM // 2]
    view[ITEM // 2 :] = pattern[ITEM // 2 :]
    arrays["index"][...] = data


def fill_and_tell_modules(data: int, arrays: Mapping[str, npt.NDArray[Any]], seed: int | None) -> dict[str, Any]:
    """Fills, and tells which heavy modules this process has imported."""
    fill(data, arrays, seed)
    heavy = ("jax", "jaxlib", "cupy", "nvidia", "tqdm", "PIL", "pandas")
    return {"pid": os.getpid(), "modules": [name for name in heavy if name in sys.modules]}


def pattern_group(items: int = 4096, batch_size: int = 16, *, seed: int = 7) -> DataGroup[int]:
    """Shuffled items of `ITEM` patterned bytes."""
    return DataGroup(
        batch_size,
        range(items),
        loader_arrays={"pattern": ((ITEM,), np.uint8, np.uint8), "index": ((), np.int32, np.int32)},
        seed=seed,
        shuffle_first=True,
    )


def assert_intact(pattern: Any, index: Any, indices: Any, seeds: Any) -> None:
    """Fails unless the arrays hold exactly the items that the batch was said to have."""
    got = np.asarray(pattern)
    want = np.stack([expected(i, s) for i, s in zip(indices, seeds, strict=True)])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.asarray(index), np.asarray(indices))
