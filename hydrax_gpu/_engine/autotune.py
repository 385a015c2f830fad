"""Measures a loader for its `Tuner`, and gives it what that wants.

A window begins when all workers that there are to be are ready, and the batches that were under way before have been
handed out. It is a few batches long, and as long as it takes for chance to even out. Whoever drives the runner asks
(`look`), with its lock; there is no thread and no timer for this.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hydrax_gpu._engine.core import Core
from hydrax_gpu._engine.messages import Tune
from hydrax_gpu._engine.stages import StageClock
from hydrax_gpu._engine.tuning import Limits, Setting, Tuner, Window
from hydrax_gpu._exec.protocol import Executor, WorkerReady
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.limits import room
from hydrax_gpu._stages import Cause, Kind
from hydrax_gpu._tuning import Tuning, TuningStep

__all__ = ["Autotune"]

_log = logging.getLogger("hydrax_gpu")

_LOOK_NS = 1_000_000
"""Time between two looks at most."""
_SECONDS = 0.15
_BATCHES = 12
_SETTLED_SECONDS = 1.0
"""The length of a window when nothing is being tried."""
_LONGEST_SECONDS = 5.0
"""Of batches that take seconds, fewer than `_BATCHES` have to do."""

_STEPS = 64
"""How many changes are remembered, beside the start."""

_SHARE = 0.5
"""Of the memory that is left what more workers, or slots, may take at once."""

_LOADING = (int(Kind.READ), int(Kind.LOAD), int(Kind.DECODE))
_FOR_WORKERS = (int(Cause.QUEUE), int(Cause.READ), int(Cause.LOAD), int(Cause.DECODE))
_WAIT = int(Kind.WAIT)


@dataclass(frozen=True, slots=True)
class _Mark:
    """All counts as they were at a time."""

    at: int
    batches: int
    waited: int
    loading: int
    busy: int
    held: int
    waits: int
    cpu: Mapping[int, int]
    own: int


class Autotune:
    """Tunes one runner.

    Args:
        tuner: decides.
        core: of the runner.
        executor: of the runner.
        arena: the slots.
        stages: the clock of the runner.
        shared: whether the arena's memory is shared with worker processes.
        log: told of each change.
    """

    def __init__(
        self,
        tuner: Tuner,
        core: Core,
        executor: Executor,
        arena: Arena,
        stages: StageClock,
        *,
        shared: bool,
        log: Callable[..., None] = _log.info,
    ) -> None:
        self._tuner = tuner
        self._core = core
        self._executor = executor
        self._arena = arena
        self._stages = stages
        self._shared = shared
        self._log = log
        self._most = tuner.limits
        self._begin = time.perf_counter_ns()
        self._ready = False  # whether all workers that are to be there were seen to be
        self._from = 0  # number of batches at which the window begins
        self._mark: _Mark | None = None
        self._look_at = 0
        self._first = TuningStep(0.0, 0, *tuner.setting, 0.0, "the start")
        self._steps: deque[TuningStep] = deque(maxlen=_STEPS)

    # Measuring.

    def look(self, workers: Mapping[int, WorkerReady]) -> Tune | None:
        """Whether there is something to change now.

        Args:
            workers: those that are ready.
        """
        now = self._stages.clock()
        if now < self._look_at:
            return None
        self._look_at = now + _LOOK_NS
        batches = self._stages.batches
        setting = self._tuner.setting
        if not self._ready:
            if not batches or sum(number in workers for number in range(setting.workers)) < setting.workers:
                return None
            self._ready = True
            self._employ(setting.workers)
            # what is in slots now was, at least in part, loaded as it was before
            self._from = batches + setting.slots + 1
            return None
        if batches < self._from:
            return None
        mark = self._mark
        if mark is None:
            self._mark = self._now(workers)
            return None
        seconds = (now - mark.at) / 1e9
        least = _SETTLED_SECONDS if self._tuner.settled else _SECONDS
        enough = batches - mark.batches >= _BATCHES or (seconds > _LONGEST_SECONDS and batches - mark.batches >= 3)
        if seconds < least or not enough:
            return None
        self._mark = self._now(workers)
        return self._feed(_window(mark, self._mark))

    def _now(self, workers: Mapping[int, WorkerReady]) -> _Mark:
        totals = self._stages.settle()
        cpu = {number: self._executor.cpu_ns(number) for number in workers}
        return _Mark(
            at=self._stages.waits.since or self._stages.clock(),  # a wait that is not over counts when it is
            batches=totals.batches,
            waited=totals.ns[_WAIT],
            loading=sum(totals.causes[cause] for cause in _FOR_WORKERS),
            busy=sum(totals.ns[kind] for kind in _LOADING),
            held=totals.held,
            waits=totals.counts[_WAIT],
            cpu=cpu,
            own=time.process_time_ns() - (0 if self._shared else sum(each for each in cpu.values() if each > 0)),
        )

    # Changing.

    def _feed(self, window: Window) -> Tune | None:
        before = self._tuner.setting
        settled, why = self._tuner.settled, self._tuner.why
        self._tuner.limits = self._limits(before)
        setting = self._tuner.feed(window)
        if setting == before:
            if self._tuner.settled and (not settled or why != self._tuner.why):
                self._log("%d workers and %d slots stay: %s", *setting, self._tuner.why)
            return None
        return self._change(setting, self._tuner.why, window.batches / window.seconds)

    def _change(self, setting: Setting, why: str, rate: float = 0.0) -> Tune:
        try:
            self._arena.use(setting.slots)
        except MemoryError as error:
            setting = Setting(setting.workers, self._arena.in_use)
            why = f"{error}"
            self._tuner.refuse(setting, why)
            _log.warning("depth='auto' stays at %d slots: %s", setting.slots, why)
        seconds = (time.perf_counter_ns() - self._begin) / 1e9
        self._steps.append(TuningStep(seconds, self._stages.batches, *setting, rate, why))
        self._log("%d workers and %d slots from now on: %s", *setting, why)
        if setting.workers < self._stages.employed.now:
            self._employ(setting.workers)
        if self._stages.trace is not None:
            self._stages.trace.level("tuning", self._stages.clock(), setting._asdict())
        self._ready, self._mark = False, None
        return Tune(*setting)

    def _employ(self, workers: int) -> None:
        if workers != self._stages.employed.now:
            self._stages.employed.change(self._stages.clock(), workers)

    def refused(self, workers: int, why: str) -> Tune:
        """So many workers is all that can be had: a further one could not be started, for the reason `why`."""
        setting = Setting(max(1, workers), self._tuner.setting.slots)
        _log.warning("loader_count='auto' stays at %d workers: %s", setting.workers, why)
        why = f"no more could be started: {why}"
        self._tuner.refuse(setting, why)
        return self._change(setting, why)

    @property
    def workers(self) -> int:
        """How many there are to be."""
        return self._tuner.setting.workers

    def _limits(self, setting: Setting) -> Limits:
        """The limits, with what memory leaves of them now."""
        left = room(shared=self._shared)
        limits = self._tuner.limits
        if left is None:
            return limits
        slots = setting.slots + int(_SHARE * left.bytes / self._arena.shape.stride)
        if slots < self._most.slots:
            limits = replace(limits, slots=max(setting.slots, slots), why_slots=f"memory ({left.what})")
        if self._shared and (size := _own_memory(self._executor.pid(0))):
            workers = setting.workers + int(_SHARE * left.bytes / size)
            if workers < limits.workers:
                limits = replace(limits, workers=max(setting.workers, workers), why_workers=f"memory ({left.what})")
        return limits

    # What came of it.

    @property
    def tuning(self) -> Tuning:
        """For the report."""
        tuner = self._tuner
        return Tuning(
            workers=tuner.setting.workers,
            depth=tuner.setting.slots,
            settled=tuner.settled,
            why=tuner.why,
            most_workers=tuner.limits.workers,
            most_depth=tuner.limits.slots,
            cores=tuner.limits.cores,
            steps=(self._first, *self._steps),
        )


def _window(begin: _Mark, end: _Mark) -> Window:
    both = begin.cpu.keys() & end.cpu.keys()
    known = bool(both) and all(begin.cpu[each] >= 0 and end.cpu[each] >= begin.cpu[each] for each in both)
    return Window(
        seconds=max(1, end.at - begin.at) / 1e9,
        batches=end.batches - begin.batches,
        waited=(end.waited - begin.waited) / 1e9,
        loading=(end.loading - begin.loading) / 1e9,
        busy=(end.busy - begin.busy) / 1e9,
        cpu=sum(end.cpu[each] - begin.cpu[each] for each in both) / 1e9 if known else None,
        own=max(0, end.own - begin.own) / 1e9,
        held=(end.held - begin.held) / max(1, end.waits - begin.waits),
    )


def _own_memory(pid: int) -> int:
    """Bytes that a process has for itself; 0 when that cannot be known."""
    try:
        resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    except (OSError, ValueError):
        return 0
    return max(0, resident - shared) * os.sysconf("SC_PAGE_SIZE")
