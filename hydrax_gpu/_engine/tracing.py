"""Where single events go when a run is traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["TraceSink"]


class TraceSink(Protocol):
    """What is written down of single events; see `hydrax_gpu.trace`. All times are of `time.perf_counter_ns`."""

    def span(self, track: str, name: str, begin: int, end: int, args: Mapping[str, Any]) -> None:
        """Something that took a while, on one of the tracks `engine`, `placement`, `copy` and `consumer`."""
        ...

    def chunk(self, pid: int, worker: int, name: str, begin: int, end: int, args: Mapping[str, Any]) -> None:
        """What a worker did."""
        ...

    def level(self, name: str, at: int, values: Mapping[str, float]) -> None:
        """Numbers that hold from now on."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...

    @property
    def note(self) -> str | None:
        """Why not all of it is there."""
        ...
