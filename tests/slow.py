"""What is slow at one stage. Worker processes import this module, so it must not import jax."""

from __future__ import annotations

import select
from collections.abc import Mapping
from typing import Any

from hydrax_gpu.decode.base import Bound, Decode, Kept


def take(seconds: float) -> None:
    """Takes that long, without the GIL and without a processor."""
    select.select([], [], [], seconds)


class SlowLoad:
    """A loader function that takes `seconds` an item."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        take(self.seconds)
        for array in arrays.values():
            array[...] = item


class SlowData:
    """Descriptors that take `seconds` each to look up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        take(self.seconds)
        return index


class SlowDecode(Decode):
    """Leaves an array as it is, and takes `seconds` for that."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        return {name: declared[name]}

    def bind(self, library: Any, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]) -> Bound:
        def decode(loaded: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[int, str]:
            take(self.seconds)
            batch[name][...] = loaded[name]
            return {}

        return decode
