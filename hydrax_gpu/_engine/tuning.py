"""How many workers and slots a loader should have: decided from what was measured, with no clock and no I/O.

It is told of one stretch of time after the other (`Window`), in each of which nothing was changed, and answers what to
have from now on. The first moves are reckoned: workers that are busy all the time while the loop waits are too few by a
factor that the waits tell. Each move is a trial: it stays if the next window bears it out, or else what was before
comes back, and what was tried is a bound from then on. So there is an end to it: bounds only close in. They are
forgotten when the load is another one; how long that must have lasted doubles each time, so that noise cannot keep it
going.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Limits", "Setting", "Tuner", "Window"]

_ENOUGH = 0.03
"""A loop that waits for less than this share of its time has what it needs."""
_BUSY = 0.7
"""Workers that are busy for this share of their time are too few, if the loop waits."""
_ALWAYS_BUSY = 0.93
"""Workers that are have always had a slot to fill."""
_MARGIN = 1.25
"""Workers are wanted that are not busy all of the time: batches are not all alike."""
_GAIN = 1.04
"""More has to make batches come so much quicker to stay: a worker costs memory, and its start processor time."""
_LOSS = 0.98
"""Fewer may let them come so much slower."""
_CLEAR = 1.10
"""A gain beyond this, and a loss below its inverse, need no second window."""
_WINDOWS = 3
"""Windows that a trial may take."""
_CORES = 0.92
"""Where so much of the processors is in use, more workers would only share it."""
_SPARE = 0.25
"""Of a worker, that it would take to use the last bit of a processor, but which the main process needs, too."""
_OTHER = 1.5
"""A load is another one when an item takes so many times as long, or the reciprocal of that."""
_REMEMBERED = 8
"""Windows that what is usual is made of."""
_PATIENCE = 3
"""Windows in a row that must show another load, at first."""
_LONGEST_PATIENCE = 96
_QUIET = 200
"""After so many windows without a change, patience is halved again."""


class Setting(NamedTuple):
    """What can be chosen."""

    workers: int
    slots: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What can be had.

    Attributes:
        workers: how many, at least 1.
        slots: how many, at least 1.
        cores: processors.
        why_workers, why_slots, why_cores: what sets these limits.
    """

    workers: int
    slots: int
    cores: float
    why_workers: str = ""
    why_slots: str = ""
    why_cores: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured while nothing was changed. Times are in seconds.

    Attributes:
        seconds: how long it was.
        batches: that were handed out in it, at least 1.
        waited: of that, how long `next()` has.
        loading: of `waited`, how long for what workers do.
        busy: how long workers loaded, the sum over all.
        cpu: processor time of the workers; None when it cannot be known.
        own: processor time of this process, without that of workers in it.
        held: slots in batches that the consumer keeps, as a mean.
    """

    seconds: float
    batches: int
    waited: float
    loading: float
    busy: float
    cpu: float | None = None
    own: float = 0.0
    held: float = 0.0

    @property
    def wait_share(self) -> float:
        return min(1.0, self.waited / self.seconds)

    @property
    def period(self) -> float:
        """Seconds from batch to batch."""
        return self.seconds / self.batches

    def plus(self, other: Window) -> Window:
        """Both as one."""
        seconds = self.seconds + other.seconds
        return Window(
            seconds=seconds,
            batches=self.batches + other.batches,
            waited=self.waited + other.waited,
            loading=self.loading + other.loading,
            busy=self.busy + other.busy,
            cpu=None if self.cpu is None or other.cpu is None else self.cpu + other.cpu,
            own=self.own + other.own,
            held=(self.held * self.seconds + other.held * other.seconds) / seconds,
        )


@dataclass(frozen=True, slots=True)
class _Trial:
    before: Setting
    baseline: Window
    windows: int = 0
    seen: Window | None = None


class Tuner:
    """Chooses.

    Args:
        start: what there is in the beginning.
        limits: what there can be.
        workers: whether the number of workers is to be chosen.
        slots: whether the number of slots is.

    Attributes:
        setting: what there is to be.
        limits: may be set to others, when they have changed.
        settled: whether nothing is being tried.
        why: what is being tried, or why it is settled.
    """

    def __init__(self, start: Setting, limits: Limits, *, workers: bool = True, slots: bool = True) -> None:
        self.setting = start
        self.limits = limits
        self.settled = False
        self.why = "the start; nothing is measured yet"
        self._tunes_workers = workers
        self._tunes_slots = slots
        self._trial: _Trial | None = None
        self._reference: Window | None = None
        self._odd = 0  # windows in a row that were of another load
        self._quiet = 0
        self._patience = _PATIENCE
        self._last: Window | None = None
        self._forget()

    def _forget(self) -> None:
        """Lets go of all bounds but the limits."""
        self._settled_as(False)
        self._too_many_workers = math.inf  # so many, or more, do not help
        self._too_many_slots = math.inf
        self._too_few_workers = 0  # so many, or fewer, are not enough
        self._no_more_workers = self._no_more_slots = ""  # how that was found

    def _settled_as(self, settled: bool) -> None:
        self.settled, self._odd, self._quiet = settled, 0, 0

    def refuse(self, setting: Setting, why: str) -> None:
        """`setting` is all that can be had: what was tried beyond that has failed, for the reason `why`."""
        limits = self.limits
        if setting.workers < self.setting.workers:
            limits = replace(limits, workers=setting.workers, why_workers=why)
        if setting.slots < self.setting.slots:
            limits = replace(limits, slots=setting.slots, why_slots=why)
        self.limits = limits
        self.setting = setting
        self._trial = None
        self.why = why

    def feed(self, window: Window) -> Setting:
        """What to have after this window. `why` tells what for."""
        if self._trial is not None:
            self._judge(self._trial, window)
            return self.setting
        if self.settled and not self._is_other(window):
            return self.setting
        self._move(window)
        if self.settled:
            self._reference = window
        return self.setting

    # Whether the load is what it was.

    def _is_other(self, window: Window) -> bool:
        known = self._reference
        if known is None or _alike(window, known):
            self._odd = 0
            self._quiet += 1
            if known is not None and self._quiet < _REMEMBERED:
                self._reference = known.plus(window)  # which is surer than one
            if self._quiet >= _QUIET:
                self._quiet, self._patience = 0, max(_PATIENCE, self._patience // 2)
            return False
        self._odd += 1
        if self._odd < self._patience:
            return False
        self._patience = min(_LONGEST_PATIENCE, 2 * self._patience)
        self._forget()
        return True

    # What to try.

    def _move(self, window: Window) -> None:
        wait = window.wait_share
        if wait < _ENOUGH:
            if not self._fewer(window):
                self._settle(f"the loop waits for data {wait:.1%} of the time")
            return
        busy = window.busy / (window.seconds * self.setting.workers)
        held = self._held(window)
        said = f"the loop waited {wait:.0%} of the time"
        for_what = f"{said} and the workers were busy {busy:.0%} of it"
        why: list[str] = []
        if busy >= _BUSY and not held:
            why.append(self._more_workers(window, for_what))
            if not why[-1]:
                return
        if busy < _ALWAYS_BUSY or held:
            kept = f"{said} with {window.held:.1f} slots in batches that it keeps"
            why.append(self._more_slots(window, kept if held else for_what))
            if not why[-1]:
                return
        if busy < _BUSY and not held:
            # All of them at one batch have it sooner, even if there is not enough for all to do.
            if window.loading >= 0.5 * window.waited:
                why.append(self._more_workers(window, f"{said}, most of it for batches that were being loaded"))
                if not why[-1]:
                    return
            elif self._fewer(window):
                return
        self._settle("; ".join(why))

    def _held(self, window: Window) -> bool:
        return window.held > max(1.5, self.setting.slots - 1.5)

    def _more_workers(self, window: Window, for_what: str) -> str:
        """Tries more workers; returns why not, if it does not."""
        count, limits = self.setting.workers, self.limits
        if not self._tunes_workers:
            return f"loader_count is fixed at {count}"
        most: float = limits.workers
        why = f"limited to {limits.workers} workers by {limits.why_workers}"
        if window.cpu is not None and window.cpu:
            used = (window.cpu + window.own) / window.seconds
            if used >= _CORES * limits.cores:
                return (
                    f"limited by cores: {used:.1f} of {limits.cores:g} are in use ({limits.why_cores}), and more "
                    "workers would share them"
                )
            # How many workers it takes to use all of the processors, if none ever had to wait for a slot.
            enough = max(1, math.ceil(limits.cores * window.busy / window.cpu - _SPARE))
            if count >= enough:
                return (
                    f"limited by cores: {enough} workers that have enough to do use all of {limits.cores:g} "
                    f"({limits.why_cores})"
                )
            most = min(most, enough)
        if self._too_many_workers < math.inf:
            room = int(self._too_many_workers) - count
            if room < 4:
                return self._no_more_workers
            most = min(most, count + room // 2)
        if count >= most:
            return why
        # In the time that the loop takes for itself, they can load without being noticed.
        step = max(window.seconds - window.waited, 1e-9)
        wanted = math.ceil(_MARGIN * window.busy / step)
        # where that is most of the time, the quotient can be relied on
        leap = 4 if step > 0.3 * window.seconds else 2
        self._try(window, Setting(min(max(wanted, count + 1), leap * count, int(most)), self.setting.slots), for_what)
        return ""

    def _more_slots(self, window: Window, for_what: str) -> str:
        """As `_more_workers`."""
        count, limits = self.setting.slots, self.limits
        if not self._tunes_slots:
            return f"depth is fixed at {count}"
        if count >= limits.slots:
            return f"limited to {limits.slots} slots by {limits.why_slots}"
        if count + 1 >= self._too_many_slots:
            return self._no_more_slots
        wanted = count + max(1, count // 2)
        wanted = min(wanted, limits.slots, int(min(self._too_many_slots - 1, 1 << 30)))
        self._try(window, Setting(self.setting.workers, wanted), for_what)
        return ""

    def _fewer(self, window: Window) -> bool:
        """Tries fewer workers, where some have nothing to do."""
        busy = window.busy / window.seconds
        wanted = max(1, math.ceil(_MARGIN * busy + 0.1), self._too_few_workers + 1)
        if not self._tunes_workers or wanted >= self.setting.workers:
            return False
        why = f"{busy:.1f} of {self.setting.workers} workers had something to do"
        self._try(window, Setting(wanted, self.setting.slots), why)
        return True

    def _try(self, window: Window, setting: Setting, why: str) -> None:
        self._trial = _Trial(self.setting, window)
        self._settled_as(False)
        self.setting, self.why = setting, why

    # What came of it.

    def _judge(self, trial: _Trial, window: Window) -> None:
        seen = window if trial.seen is None else trial.seen.plus(window)
        gain = trial.baseline.period / seen.period
        windows = trial.windows + 1
        fewer = self.setting.workers < trial.before.workers
        plain = gain >= _LOSS and seen.wait_share < _ENOUGH if fewer else windows > 1 and _LOSS < gain < 2 - _LOSS
        if windows < _WINDOWS and 1 / _CLEAR < gain < _CLEAR and not plain:
            self._trial = replace(trial, windows=windows, seen=seen)
            return
        self._trial = None
        before, now = trial.before, self.setting
        if fewer:
            enough = seen.wait_share < _ENOUGH or trial.baseline.wait_share >= _ENOUGH
            if gain >= _LOSS and enough:
                self._move_on(seen)
                return
            self._too_few_workers = max(self._too_few_workers, now.workers)
            self._back(before, f"with {now.workers} workers a batch took {1 / gain:.2f} times as long", trial.baseline)
            return
        if gain >= _GAIN or (trial.baseline.wait_share >= _ENOUGH > seen.wait_share):
            if now.slots > before.slots:
                self._too_many_workers = math.inf  # they may have had no slots
            self._move_on(seen)
            return
        if now.workers > before.workers:
            # far worse may mean that it is too many by far; no better means that none would help
            self._too_many_workers = now.workers if gain < 1 / _CLEAR else before.workers + 1
            why = self._no_more_workers = f"with {now.workers} workers batches came {gain:.2f} times as quickly"
        else:
            self._too_many_slots = before.slots + 1
            why = self._no_more_slots = f"with {now.slots} slots batches came {gain:.2f} times as quickly"
        self._back(before, why, trial.baseline)

    def _move_on(self, window: Window) -> None:
        self._move(window)
        if self.settled:
            self._reference = window

    def _back(self, before: Setting, why: str, window: Window) -> None:
        # What it was like there is known, so what comes next need not wait for another window; but one thing at a time.
        self.setting, self.why = before, f"back, since {why}"
        self._reference = window

    def _settle(self, why: str) -> None:
        self._settled_as(True)
        self.why = why


def _alike(window: Window, usual: Window) -> bool:
    """Whether a window is of the load that is usual."""
    if abs(window.wait_share - usual.wait_share) > 0.2 or usual.wait_share < _ENOUGH < window.wait_share / 2:
        return False
    loads = window.busy / window.batches, usual.busy / usual.batches
    steps = (window.seconds - window.waited) / window.batches, (usual.seconds - usual.waited) / usual.batches
    # what is next to nothing of the time may become many times as much without a difference
    least = 0.05 * min(window.period, usual.period)
    return all(max(a, b) <= _OTHER * max(min(a, b), least) for a, b in (loads, steps))
