"""How many workers and slots a loader begins with, and how many it may have: what `loader_count` and `depth` say."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydrax_gpu import _place
from hydrax_gpu._arguments import at_least
from hydrax_gpu._assembly import ExecutorName
from hydrax_gpu._cachesetup import check_workers
from hydrax_gpu._engine import Autotune, Limits, Runner, Setting, Tuner
from hydrax_gpu._mem.arena import Arena, stride_of
from hydrax_gpu._mem.cores import cores
from hydrax_gpu._mem.limits import room
from hydrax_gpu._tuning import Tuning, TuningStep
from hydrax_gpu.group import DataGroup

__all__ = ["Sizing"]

_START = Setting(2, 3)
_WORKERS_PER_CORE = 8
"""Workers that wait for disks and networks need no processor meanwhile."""
_MOST_WORKERS = 64
_MOST_SLOTS = 32
_FILES_PER_WORKER = 5
_SHARE = 0.25
"""Of the memory that is free what slots may take."""
_DEVICE_SLOTS = 8
_DEVICE_BYTES = 256 << 20
"""With a device all slots are real from the start, on both sides, so that there may be fewer of them."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What was asked for.

    Attributes:
        executor: name of the executor.
        start: workers and slots in the beginning.
        auto_workers: whether the number of workers is chosen while the loader runs.
        auto_slots: whether the number of slots is.
        agreed: whether that was to be chosen, and is fixed for several processes to agree on it.
    """

    executor: ExecutorName
    start: Setting
    auto_workers: bool = False
    auto_slots: bool = False
    agreed: bool = False

    @staticmethod
    def of(
        depth: object,
        loader_count: object,
        executor: ExecutorName,
        groups: Sequence[DataGroup[Any]],
        *,
        several: bool = False,
    ) -> Sizing:
        """What the arguments of those names say.

        Args:
            depth, loader_count, executor: the arguments.
            groups: all groups.
            several: whether this is one of several processes that have their batches together. They have to agree on
                the number of slots, which so stays as it is.

        Raises:
            TypeError, ValueError: one is neither a number that is large enough nor "auto".
        """
        slots, workers = _number("depth", depth, 1), _number("loader_count", loader_count, 0)
        check_workers(-1 if workers is None else workers, groups)
        if workers == 0:
            workers, executor = 1, "thread" if executor == "process" else executor
        start = Setting(_START.workers if workers is None else workers, _START.slots if slots is None else slots)
        if executor == "inline":
            start = Setting(1, start.slots)
        return Sizing(executor, start, workers is None, slots is None and not several, slots is None and several)

    @property
    def shared(self) -> bool:
        """Whether the slots are shared with worker processes."""
        return self.executor == "process"

    @property
    def tunes(self) -> bool:
        """Whether there is anything to choose."""
        return (self.auto_workers or self.auto_slots) and self.executor != "inline"

    def limits(self, slot_size: int) -> Limits:
        """What can be had, for batches of at most `slot_size` bytes: what was asked for, where that is a number."""
        start, there = self.start, cores()
        most, why = start.workers, "loader_count"
        if self.auto_workers and self.tunes:
            most = min(_MOST_WORKERS, max(8, _WORKERS_PER_CORE * math.ceil(there.number)))
            why = f"{_WORKERS_PER_CORE} for each of {there.number:g} processors"
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if self.shared and files != resource.RLIM_INFINITY and files // 2 // _FILES_PER_WORKER < most:
                most, why = max(start.workers, files // 2 // _FILES_PER_WORKER), "the limit of open files (ulimit -n)"
        slots, why_slots = self._most_slots(stride_of(slot_size))
        return Limits(most, slots, there.number, why, why_slots, there.what)

    def _most_slots(self, stride: int) -> tuple[int, str]:
        least = self.start.slots
        if not (self.auto_slots and self.tunes):
            return least, "what several processes have to agree on" if self.agreed else "depth"
        if _place.possible():
            most = min(_DEVICE_SLOTS, _DEVICE_BYTES // stride)
            return max(least, most), "what a device is given at the start"
        left = room(shared=self.shared)
        if left is not None and int(_SHARE * left.bytes / stride) < _MOST_SLOTS:
            return max(least, int(_SHARE * left.bytes / stride)), f"memory ({left.what})"
        return _MOST_SLOTS, "the most that are of use"

    def arena(self, slot_size: int, limits: Limits) -> Arena:
        """The slots.

        Raises:
            NotEnoughMemory, MemoryError: as `Arena.create`.
        """
        # a device's driver locks all pages in memory anyway
        in_use = limits.slots if _place.possible() else self.start.slots
        return Arena.create(limits.slots, slot_size, workers=limits.workers, shared=self.shared, in_use=in_use)

    def autotune(self, runner: Runner, arena: Arena, limits: Limits) -> Autotune | None:
        """What chooses for a runner; None when nothing is to be chosen."""
        if not self.tunes:
            return None
        tuner = Tuner(self.start, limits, workers=self.auto_workers, slots=self.auto_slots)
        return Autotune(tuner, runner.core, runner.executor, arena, runner.stages, shared=self.shared)

    def tuning(self, runner: Runner | None) -> Tuning | None:
        """What came of it, for the report; None when nothing was to be chosen."""
        if runner is not None and runner.tuning is not None:
            return runner.tuning.tuning
        if not (self.auto_workers or self.auto_slots or self.agreed):
            return None
        why = "not entered yet" if self.tunes else f"{self.start.slots} slots are what several processes agree on"
        if self.executor == "inline":
            why = "executor='inline' loads in next(), one batch at a time: there is nothing to choose"
        first = TuningStep(0.0, 0, *self.start, 0.0, "the start")
        return Tuning(*self.start, not self.tunes, why, *self.start, cores().number, (first,))


def _number(name: str, value: object, least: int) -> int | None:
    """A number of at least `least`, or None for "auto"."""
    if isinstance(value, str):
        if value == "auto":
            return None
        raise ValueError(f"{name}: got {value!r}, wanted an integer of at least {least}, or 'auto'")
    return at_least(name, value, least)
