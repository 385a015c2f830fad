"""A trace's file, and what its events sum up to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydrax_gpu._stages import Cause, Kind, Part, Stages, Totals

__all__ = ["Event", "Recording", "TraceError", "read"]

_RECENT_NS = 10_000_000_000


class TraceError(ValueError):
    """A file is no trace of a loader's."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event; times in nanoseconds."""

    kind: str
    pid: int
    track: int
    name: str
    begin: int
    end: int
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """A trace.

    Attributes:
        events: in the order of the file, without those that name things.
        tracks: names of the tracks, by process and thread number.
        pid: of the main process.
        executor, workers, depth, cores: of the loader and its machine.
    """

    events: list[Event]
    tracks: dict[tuple[int, int], str]
    pid: int
    executor: str
    workers: int
    depth: int
    cores: int

    def stages(self) -> Stages:
        """What the time since the first batch went into, as the loader's report would have said at the end."""
        steps = [event.begin for event in self.events if event.name == "step"]
        if not steps:
            return Stages(workers=self.workers)
        begin, end = steps[0], max(event.end for event in self.events)
        recent = None
        if end - _RECENT_NS > begin:
            recent = Stages.of(self._totals(end - _RECENT_NS, end), self.workers)
        return Stages.of(self._totals(begin, end), self.workers, recent)

    def _totals(self, begin: int, end: int) -> Totals:
        totals = Totals(end - begin)
        level: Event | None = None
        for event in self.events:
            if event.kind == "C":
                if event.name == "slots":
                    if level is not None:
                        _slots(totals, level, max(begin, level.begin), event.begin)
                    level = event
            elif event.end > begin:
                _count(totals, event, begin)
        if level is not None:
            _slots(totals, level, max(begin, level.begin), end)
        return totals


def _slots(totals: Totals, level: Event, begin: int, end: int) -> None:
    totals.seen += max(0, end - begin)
    for part in Part:
        totals.slots[part] += int(level.args[part.name.lower()] * max(0, end - begin))


def _count(totals: Totals, event: Event, since: int) -> None:
    ns, args = event.end - max(since, event.begin), event.args
    counts, sums = totals.counts, totals.ns
    match event.name:
        case "plan" | "send":
            sums[Kind.PLAN] += ns
            counts[Kind.PLAN] += event.name == "plan"
        case "load" | "read":
            decode = int(1e3 * args["decode_us"] * ns / max(1, event.end - event.begin))
            kind = Kind[event.name.upper()]
            sums[kind] += ns - decode
            counts[kind] += 1
            sums[Kind.DECODE] += decode
            counts[Kind.DECODE] += decode > 0
            sums[Kind.QUEUE] += min(int(1e3 * args["queued_us"]), max(0, event.begin - since))
            counts[Kind.QUEUE] += 1
        case "place" | "fence" | "copy":
            kind = {"place": Kind.PLACEMENT, "fence": Kind.FENCE, "copy": Kind.COPY}[event.name]
            sums[kind] += ns
            counts[kind] += 1
        case "wait":
            sums[Kind.WAIT] += ns
            counts[Kind.WAIT] += 1
            totals.held += args["held"]
            for name, us in args.get("for_us", {}).items():
                totals.causes[Cause[name.upper()]] += int(1e3 * us)
        case "step":
            sums[Kind.STEP] += ns
            counts[Kind.STEP] += 1
            totals.batches += 1
            totals.items += args["items"]
        case _:
            return


def read(path: Path) -> Recording:
    """Reads a file that `hydrax_gpu.trace.Trace` has written.

    Raises:
        OSError: it cannot be read.
        TraceError: it is something else.
    """
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise TraceError(f"{path} is not JSON ({error}), so no trace of a Dataloader's") from None
    events: list[Event] = []
    tracks: dict[tuple[int, int], str] = {}
    about: dict[str, Any] | None = None
    try:
        for entry in cast("list[dict[str, Any]]", entries):
            kind, pid, track, name, args = (entry[key] for key in ("ph", "pid", "tid", "name", "args"))
            if kind == "M":
                if name == "hydrax_gpu":
                    about = args
                elif name == "thread_name":
                    tracks[pid, track] = args["name"]
                continue
            begin = round(1e3 * entry["ts"])
            events.append(Event(kind, pid, track, name, begin, begin + round(1e3 * entry.get("dur", 0)), args))
        if about is None:
            raise TraceError(f"{path} is a trace, but not of a Dataloader's: make one with Dataloader(trace=...)")
        names = ("pid", "executor", "workers", "depth", "cores")
        return Recording(events, tracks, *(about[name] for name in names))
    except (KeyError, TypeError, AttributeError):
        raise TraceError(f"{path} is not a trace of a Dataloader's: make one with Dataloader(trace=...)") from None
