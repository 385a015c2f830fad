"""What is kept of all chunks and waits, and of a batch that is measured in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Counters", "Lent", "Waits", "Way"]


@dataclass(slots=True)
class Counters:
    """What the runner counts of all chunks; read by other threads, each number by itself."""

    chunks: int = 0
    busy_ns: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class Waits:
    """What the consumer counts of all its waits in `next()`; read by other threads, each number by itself."""

    count: int = 0
    ns: int = 0
    since: int = 0
    """When the one began that is not over; 0 if there is none."""


class Lent(Protocol):
    """A batch that was handed out."""

    def alive(self) -> Sequence[object]:
        """What there still is of it."""
        ...


class Way:
    """The times of one batch."""

    __slots__ = (
        "begin",
        "busy",
        "cached",
        "decode",
        "end",
        "number",
        "placed",
        "placing",
        "planned",
        "planning",
        "sent",
        "weight",
    )

    def __init__(self, planning: int, planned: int, number: str, weight: int) -> None:
        self.planning = planning
        self.planned = planned
        self.sent = planned
        self.begin = 0  # 0 for unknown, as long as no worker has told
        self.end = 0
        self.placing = 0
        self.placed = 0
        self.busy = 0
        self.decode = 0
        self.cached = False
        self.number = number
        self.weight = weight  # how many batches it stands for
