"""What the time of a loader went into: sums by stage, as they are kept, and as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = ["Cause", "Kind", "Part", "Slots", "Stage", "Stages", "Totals"]


class Kind(IntEnum):
    """A stage; its parallelism is one, except for what workers do."""

    PLAN = 0
    QUEUE = 1
    READ = 2
    LOAD = 3
    DECODE = 4
    PLACEMENT = 5
    COPY = 6
    FENCE = 7
    WAIT = 8
    STEP = 9


class Cause(IntEnum):
    """What a consumer waited for; the first are the stages of the same number, those before `WAIT`."""

    PLAN = 0
    QUEUE = 1
    READ = 2
    LOAD = 3
    DECODE = 4
    PLACEMENT = 5
    COPY = 6
    FENCE = 7
    HANDOVER = 8
    HELD = 9
    RUNNING = 10


class Part(IntEnum):
    """What a slot can be at."""

    FREE = 0
    FILLING = 1
    FULL = 2
    READY = 3
    LENT = 4
    COPYING = 5


class Totals:
    """Sums since the beginning, all times in nanoseconds. Each number is right by itself; others read them too.

    Attributes:
        at: the time they are of.
        batches, items: handed out.
        counts, ns: by `Kind`.
        causes: of waits, by `Cause`.
        slots: slots times nanoseconds, by `Part`.
        seen: nanoseconds that these are of.
        held: slots that Python objects referred to when a wait began, summed over the waits.
        use: of the workers: bytes that they had storage read, time on a processor, time that they waited for one. The
            second is 0 where that is not known.
    """

    __slots__ = ("at", "batches", "causes", "counts", "held", "items", "ns", "seen", "slots", "use")

    def __init__(self, at: int = 0) -> None:
        self.at: int = at
        self.batches: int = 0
        self.items: int = 0
        self.counts: list[int] = [0] * len(Kind)
        self.ns: list[int] = [0] * len(Kind)
        self.causes: list[int] = [0] * len(Cause)
        self.slots: list[int] = [0] * len(Part)
        self.seen: int = 0
        self.held: int = 0
        self.use: list[int] = [0, 0, 0]

    def snapshot(self, at: int) -> Totals:
        """These, as of `at`."""
        return self.since(Totals(0), at)

    def since(self, before: Totals, at: int | None = None) -> Totals:
        """What has come since `before`; its `at` is a duration then."""
        result = Totals((self.at if at is None else at) - before.at)
        result.batches, result.items = self.batches - before.batches, self.items - before.items
        result.held, result.seen = self.held - before.held, self.seen - before.seen
        for name in ("counts", "ns", "causes", "slots", "use"):
            pairs = zip(getattr(self, name), getattr(before, name), strict=True)
            setattr(result, name, [now - then for now, then in pairs])
        return result


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the way of a batch, over a stretch of time."""

    name: str
    """`plan`, `queue`, `read`, `load`, `decode`, `placement`, `copy`, `fence`, `wait` or `step`."""
    count: int
    """How often: batches planned and placed, chunks that waited for a worker and were loaded, copies, fences, waits,
    steps."""
    seconds: float
    """How long it took in all; of what workers do, the sum over the workers."""
    utilisation: float
    """Share of the time that it took, 0 to 1; of what workers do, the mean over the workers. Of the queue, in which any
    number of chunks can be, their mean number."""
    items_per_second: float | None
    """Items a second if it were the only stage and were never to wait; None where that means nothing."""
    blamed_seconds: float
    """How long `next()` waited because of it."""


@dataclass(frozen=True, slots=True)
class Slots:
    """How many of the slots were at what, as means over a stretch of time."""

    free: float = 0.0
    """Nothing to fill them with, or nobody who got around to it."""
    filling: float = 0.0
    """Given to workers."""
    full: float = 0.0
    """Loaded, and waiting for their turn."""
    ready: float = 0.0
    """In batches that wait for `next()`."""
    lent: float = 0.0
    """In batches that were handed out, or read by computations with these. (A copied batch holds none.)"""
    copying: float = 0.0
    """Read by a device that copies them."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What the time went into, over a stretch of time that begins with the first batch at the earliest."""

    seconds: float = 0.0
    """How long the stretch is."""
    batches: int = 0
    """Batches handed out in it."""
    items: int = 0
    """Items in these."""
    workers: int = 1
    """Number of workers; where that was tuned, the mean."""
    stages: tuple[Stage, ...] = ()
    """In the order of a batch's way. What workers do is `read` (from a cache), `load` (the loader function) and
    `decode` (of declared arrays), each without the others; `queue` is what chunks wait for a worker; `copy` is as long
    as the device reads a slot; `fence` what it costs the host; `step` is the consumer's own time between two calls of
    `next()`."""
    slots: Slots = field(default_factory=Slots)
    """What the slots were at."""
    handover_seconds: float = 0.0
    """How long `next()` waited although nothing was at work on the batch: messages, wake-ups, a busy processor."""
    held_seconds: float = 0.0
    """How long it waited for a slot while most slots were in batches that Python objects referred to."""
    running_seconds: float = 0.0
    """How long it waited for a slot while most slots were read by computations that were not done."""
    held_slots: float = 0.0
    """How many slots were in batches that Python objects referred to when `next()` began to wait, as a mean."""
    read_bytes: int | None = None
    """Bytes that storage, such as a disk, has read for the workers: what was in the page cache is not among them. None
    where that is not known. Of `executor="thread"` and `"inline"` it is what the loading threads read themselves."""
    asleep_share: float | None = None
    """Of the time that the workers were reading, loading or decoding, the share in which they neither ran nor waited
    for a processor: they slept, for storage, a network, a lock or another process; 0 to 1. None where it is not
    known."""
    recent: Stages | None = None
    """The same over the last ten seconds or so; None in the beginning, and in itself."""

    def __getitem__(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            KeyError: there is none; in the beginning, there are none at all.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(f"no stage {name!r}; there are {', '.join(stage.name for stage in self.stages) or 'none yet'}")

    @property
    def wait_share(self) -> float:
        """Share of the time that `next()` waited, 0 to 1."""
        return self["wait"].utilisation if self.stages else 0.0

    @property
    def busy_share(self) -> float:
        """Share of their time that the workers were reading, loading or decoding, 0 to 1."""
        return min(1.0, sum(self[name].utilisation for name in ("read", "load", "decode"))) if self.stages else 0.0

    @property
    def read_rate(self) -> float:
        """Bytes a second that storage has read for the workers; 0 where that is not known."""
        return (self.read_bytes or 0) / self.seconds if self.seconds else 0.0

    def causes(self) -> Mapping[str, float]:
        """Seconds that `next()` waited, by what for: the names of stages, `hand-over`, `held` and `running`."""
        result = {stage.name: stage.blamed_seconds for stage in self.stages if stage.name not in ("wait", "step")}
        return result | {
            "hand-over": self.handover_seconds, "held": self.held_seconds, "running": self.running_seconds,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{'stage':<10}{'times':>9}{'seconds':>10}{'busy':>8}{'items/s alone':>15}{'waited for':>12}"]
        for stage in self.stages:
            if not stage.count and stage.name in ("read", "decode", "copy", "fence"):
                continue  # there is none
            rate = "" if stage.items_per_second is None else f"{stage.items_per_second:,.0f}"
            busy = f"{stage.utilisation:.1f}" if stage.name == "queue" else f"{stage.utilisation:.1%}"
            blamed = "" if stage.name in ("wait", "step") else f"{stage.blamed_seconds:.3f} s"
            lines.append(f"{stage.name:<10}{stage.count:>9}{stage.seconds:>10.3f}{busy:>8}{rate:>15}{blamed:>12}")
        for name, seconds in list(self.causes().items())[-3:]:
            if seconds:
                lines.append(f"{name:<52}{seconds:>10.3f} s")
        if self.read_bytes and self.asleep_share is not None:
            lines.append(
                f"storage   {self.read_rate / 1e6:,.1f} MB/s read for the workers, which slept "
                f"{self.asleep_share:.0%} of their time"
            )
        slots = self.slots
        lines.append(
            f"slots     {slots.free:.1f} free, {slots.filling:.1f} filling, {slots.full:.1f} full, "
            f"{slots.ready:.1f} ready, {slots.lent:.1f} lent, {slots.copying:.1f} copying"
        )
        return "\n".join(lines)

    @staticmethod
    def of(totals: Totals, workers: float, recent: Stages | None = None) -> Stages:
        """The sums of a stretch, whose length is `totals.at`."""
        length = max(1, totals.at)
        stages: list[Stage] = []
        for kind in Kind:
            ns, parallel = totals.ns[kind], workers if kind in (Kind.READ, Kind.LOAD, Kind.DECODE) else 1
            share = ns / (length * parallel)
            rated = kind not in (Kind.QUEUE, Kind.WAIT)
            stages.append(
                Stage(
                    name=kind.name.lower(),
                    count=totals.counts[kind],
                    seconds=ns / 1e9,
                    utilisation=share if kind is Kind.QUEUE else min(1.0, share),
                    items_per_second=totals.items * parallel / (ns / 1e9) if rated and ns else None,
                    blamed_seconds=totals.causes[kind] / 1e9 if kind < Kind.WAIT else 0.0,
                )
            )
        read, ran, denied = totals.use
        busy = totals.ns[Kind.READ] + totals.ns[Kind.LOAD] + totals.ns[Kind.DECODE]
        return Stages(
            seconds=totals.at / 1e9,
            batches=totals.batches,
            items=totals.items,
            workers=max(1, round(workers)),
            stages=tuple(stages),
            slots=Slots(*(area / max(1, totals.seen) for area in totals.slots)),
            handover_seconds=totals.causes[Cause.HANDOVER] / 1e9,
            held_seconds=totals.causes[Cause.HELD] / 1e9,
            running_seconds=totals.causes[Cause.RUNNING] / 1e9,
            held_slots=totals.held / max(1, totals.counts[Kind.WAIT]),
            read_bytes=read if ran else None,
            asleep_share=max(0.0, 1.0 - (ran + denied) / busy) if ran and busy else None,
            recent=recent,
        )
