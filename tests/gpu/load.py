"""Loader functions of the GPU's tests. Workers import this: no jax here."""

from __future__ import annotations

from typing import Any

import numpy as np

MARKS = 251


def mark(item: int, arrays: Any, seed: int | None) -> None:
    """Every element of `x` gets the item's number modulo `MARKS`, `y` the number itself."""
    arrays["x"][...] = item % MARKS
    arrays["y"][...] = item


def spread(item: int, arrays: Any, seed: int | None) -> None:
    """Every array gets small whole numbers that every dtype can hold, all of them different for different items."""
    for number, array in enumerate(arrays.values()):
        if array.dtype == bool:
            array[...] = (np.arange(array.size).reshape(array.shape) + item + number) % 3 == 0
        else:
            array[...] = (np.arange(array.size).reshape(array.shape) + item + number) % 13
