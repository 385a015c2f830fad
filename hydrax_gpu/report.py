"""`Report`: what a loader has done, and which side of it is slow, in numbers and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hydrax_gpu._engine import WorkerDeath
from hydrax_gpu._stages import Slots, Stage, Stages
from hydrax_gpu._verdict import verdict
from hydrax_gpu.policy import BadItems

__all__ = ["CacheInfo", "Report", "Slots", "Stage", "Stages", "WorkerDeath", "WorkerInfo"]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker, as it reported itself ready."""

    pid: int
    """Process id; that of the main process for threads and inline."""
    start_seconds: float
    """From its creation until it could take items."""
    imported_jax: bool
    """Whether importing the loader function made it import jax, which costs start-up time and memory."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What was done with the cache of a group. Items are counted once for each batch that they are in."""

    group: str
    """Such as `training group 0`."""
    location: str
    """The cache's directory."""
    kind: Literal["direct", "encoded"]
    """`direct` for what the loader function fills, `encoded` for what `Batch.cache` is given."""
    readonly: bool
    """Whether nothing is added to it."""
    hits: int
    """Items that were read from it."""
    misses: int
    """Items that were not there, so that they, or the batches that they are in, were loaded or left out."""
    bad: int
    """Items that were there, but damaged, so that they, or the batches that they are in, were loaded or left out."""
    dropped_batches: int
    """Batches that were left out because they are not complete in it."""
    written: int
    """Items that were added to it."""
    present: int
    """Items that were to be added and were there already."""
    refused: int
    """Items that were not added, because values of theirs are not finite and `"int8"` cannot keep such."""
    bytes_read: int
    """Bytes read."""
    bytes_written: int
    """Bytes of arrays that were added."""
    compression: Mapping[str, str]
    """The form of the arrays that are not kept as they are: `zstd`, `lz4` or `int8`, by their names."""
    compression_ratio: float | None
    """Bytes of its entries' arrays as they are, for each byte on disk; None while there are no entries."""
    read_path: str
    """How records get to the slots: `posix` or `gds`."""
    read_path_reason: str
    """Why it is not GPUDirect Storage."""
    queue_waits: int
    """How often `Batch.cache` has waited because too much was to be written already."""
    queue_wait_seconds: float
    """How long it has waited."""
    troubles: tuple[str, ...]
    """Why something could not be read or written; the run went on without."""

    def __str__(self) -> str:
        text = (
            f"{self.group}, {self.kind}{', read-only' if self.readonly else ''}: {self.hits} items read "
            f"({self.bytes_read / 2**20:.1f} MiB), {self.misses} missing, {self.bad} damaged, {self.written} written "
            f"({self.bytes_written / 2**20:.1f} MiB), {self.present} present; read by {self.read_path} "
            f"({self.read_path_reason})"
        )
        if self.compression:
            forms = ", ".join(f"{name}: {form}" for name, form in self.compression.items())
            ratio = "" if self.compression_ratio is None else f", to 1/{self.compression_ratio:.2f}"
            text += f"; compressed ({forms}{ratio})"
        if self.refused:
            text += f"; {self.refused} items not kept, because they have values that are not finite"
        if self.dropped_batches:
            text += f"; {self.dropped_batches} batches left out because they are not in it"
        if self.queue_waits:
            text += f"; Batch.cache waited {self.queue_waits} times, {self.queue_wait_seconds:.2f} s"
        return text


@dataclass(frozen=True, slots=True)
class Report:
    """A snapshot of a running or ended loader. `str(report)` is for people."""

    training_batches: int
    """Training batches handed out."""
    validation_batches: int
    """Validation batches handed out."""
    items: int
    """Items handed out, repetitions that pad a batch not counted."""
    padded_rows: int
    """Rows that repeat others because of `remainder="pad"`."""
    dropped_items: int
    """Items left out by `remainder="drop"` in the passes that are complete."""
    seconds: float
    """Since the `with` block was entered, until it was left."""
    first_batch_seconds: float | None
    """From entering the `with` block until the first batch was handed out."""
    first_wait_seconds: float
    """How much of that was spent waiting in `next()`."""
    wait_seconds: float
    """Time that `next()` waited for a batch, the first included."""
    waits: int
    """How often it had to."""
    busy_seconds: float
    """Time spent in the loader function, over all workers."""
    executor: str
    """`process`, `thread` or `inline`."""
    workers: tuple[WorkerInfo, ...]
    """The workers that became ready."""
    depth: int
    """Number of slots."""
    delivery: tuple[str, ...]
    """For each group, training groups first, how its batches reach JAX: `alias`, `copy` or `user`; empty before the
    first batch."""
    memory_bytes: int
    """Size of the slots' memory."""
    huge_pages: bool
    """Whether that is on huge pages."""
    device: str | None = None
    """The device whose memory the loader fills itself; None where that is left to JAX, and on the CPU."""
    device_memory_bytes: int = 0
    """Size of the slots' memory on the device (`delivery="alias"`)."""
    pinned: bool | None = None
    """Whether the slots' memory on the host is pinned, so that the device reads it by itself; None without a device. A
    note says why not."""
    notes: tuple[str, ...] = ()
    """Whatever is not as was asked for, or costs more than it need."""
    bad: BadItems = field(default_factory=BadItems)
    """Items that could not be loaded, in batches that were handed out or dropped so far; with those that a skip list or
    the state that this run began at has named."""
    dropped_batches: int = 0
    """Batches that were left out because of bad items, or because they are not in the cache that they come from."""
    replaced_items: int = 0
    """Rows that hold a substitute for a bad item."""
    fallbacks: Mapping[str, int] = field(default_factory=dict[str, int])
    """What the loader function had to do in another way than it should, and how often: what one decoder refused and
    another read."""
    worker_deaths: tuple[WorkerDeath, ...] = ()
    """Workers that ended by themselves and were replaced."""
    kernels: str = ""
    """What decodes arrays: `host library`, or `NumPy` and why; empty when none is declared to be decoded."""

    pictures: str = ""
    """What decodes the pictures of files that workers leave to it; empty when they leave none."""
    stages: Stages = field(default_factory=Stages)
    """What the time since the first batch went into."""
    caches: tuple[CacheInfo, ...] = ()
    """What was done with the groups' caches."""

    @property
    def batches(self) -> int:
        """Batches handed out, training and validation."""
        return self.training_batches + self.validation_batches

    @property
    def items_per_second(self) -> float:
        """Items handed out a second, since the first batch."""
        seconds = self.seconds - (self.first_batch_seconds or 0.0)
        return self.items / seconds if seconds > 0 else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time since the first batch that `next()` spent waiting, 0 to 1."""
        if self.first_batch_seconds is None:
            return 0.0
        seconds = self.seconds - self.first_batch_seconds
        return min(1.0, max(0.0, self.wait_seconds - self.first_wait_seconds) / seconds) if seconds > 0 else 0.0

    @property
    def verdict(self) -> str:
        """One sentence: what limits the loop, and what to do about it.

        It is about the last ten seconds or so, and says when the whole run was limited by something else. It begins
        with `consumer-bound`, or with the stage that `next()` waited for the longest: `plan-bound`, `queue-bound`,
        `read-bound`, `loader-bound`, `decode-bound`, `placement-bound`, `copy-bound`, `fence-bound`, `hand-over-bound`,
        or `retained batches`.
        """
        if self.batches < 2:
            return "too few batches to tell"
        return verdict(self.stages, executor=self.executor, depth=self.depth)

    def __str__(self) -> str:
        lines = [
            f"batches       {self.training_batches} training, {self.validation_batches} validation",
            f"items         {self.items} ({self.items_per_second:,.0f} a second)",
            f"left out      {self.dropped_items} items dropped as remainders, {self.dropped_batches} batches dropped",
            f"bad items     {len(self.bad)}; {self.replaced_items} rows replaced, {self.padded_rows} rows padded",
            f"waited        {self.wait_seconds:.2f} s in {self.waits} of {self.batches} batches "
            f"({self.wait_share:.1%} of the time after the first batch)",
            f"first batch   {_seconds(self.first_batch_seconds)}",
            f"workers       {len(self.workers)} x {self.executor}, {self.busy_seconds:.2f} s in the loader function",
            f"slots         {self.depth} in {self.memory_bytes / 2**20:.1f} MiB"
            f"{' on huge pages' if self.huge_pages else ''}, delivery: {', '.join(self.delivery) or 'none yet'}",
            f"verdict       {self.verdict}",
            *(f"  {line}" for line in str(self.stages).splitlines() if self.stages.stages),
        ]
        if self.kernels:
            lines.append(f"decoding      by {self.kernels}")
        if self.pictures:
            lines.append(f"pictures      decoded by {self.pictures}")
        if self.device is not None:
            where = f", {self.device_memory_bytes / 2**20:.1f} MiB there" if self.device_memory_bytes else ""
            pinned = "pinned" if self.pinned else "not pinned"
            lines.append(f"device        {self.device}{where}, host memory {pinned}")
        if self.worker_deaths:
            pids = ", ".join(str(death.pid) for death in self.worker_deaths[-8:])
            lines.append(f"deaths        {len(self.worker_deaths)} workers were replaced (process {pids})")
        for cache in self.caches:
            lines.append(f"cache         {cache}")
            lines += [f"              {trouble}" for trouble in cache.troubles]
        lines += [f"fallback      {line} ({count} times)" for line, count in self.fallbacks.items()]
        lines += [f"note          {note}" for note in self.notes]
        return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "none yet" if value is None else f"after {value:.2f} s"
