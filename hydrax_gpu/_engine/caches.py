"""The caches of a loader, as its main process has them: what is in them, what is to be written, and what has happened.

Workers read caches, and write those of what the loader function fills. What `Batch.cache` is given is written here, by
threads of their own: the consumer only hands it over, so that waiting for a device and for a disk is not its business.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import Store, StoreSpec
from hydrax_gpu._engine.cached import Form
from hydrax_gpu._engine.messages import Settled
from hydrax_gpu._exec.protocol import CacheCounts
from hydrax_gpu._exec.rowstore import RowCacheSpec, RowStore
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import Layout
from hydrax_gpu.errors import CacheError

__all__ = ["QUEUE_BYTES", "Caches", "GroupCache", "open_all"]

_log = logging.getLogger("hydrax_gpu")

QUEUE_BYTES = 64 << 20
"""Bytes of arrays that may wait to be written. While they wait, they take memory of the device that has them."""

_TROUBLES = 8
"""Different ones that are told of a cache."""


@dataclass(slots=True, eq=False)
class GroupCache:
    """The cache of one group.

    Attributes:
        name: of the group, such as "training group 0".
        kind: "direct" for what the loader function fills, "encoded" for what `Batch.cache` is given.
        spec: of its store.
        layout: index of the layout of cached batches.
        arrays: that layout.
        only: whether batches come from it alone.
        counts: what was done by workers and writers.
        missed: items of batches that were loaded, or left out, because not all of their items were there.
        dropped: batches that were left out.
        troubles: why something is not read or written.
        pending: keys of what waits to be written.
        refused: whether what is in it must not be read.
        lock: of the counts.
    """

    name: str
    kind: str
    spec: StoreSpec
    layout: int
    arrays: Layout
    only: bool
    rows: RowStore
    counts: CacheCounts
    missed: int = 0
    dropped: int = 0
    troubles: list[str] = field(default_factory=list[str])
    pending: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    refused: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(name: str, kind: str, spec: StoreSpec, layout: int, arrays: Layout, only: bool) -> GroupCache:
        """Opens the store.

        Raises:
            CacheMismatch: it is of something else.
            CacheError: it cannot be opened.
        """
        rows = RowStore(spec, layout, Store.open(spec))
        return GroupCache(name, kind, spec, layout, arrays, only, rows, CacheCounts(layout))

    @property
    def worker_spec(self) -> RowCacheSpec:
        """How workers get at it."""
        return RowCacheSpec(self.spec, loads=self.kind == "direct")

    def add(self, counts: CacheCounts) -> None:
        """Something was done."""
        with self.lock:
            self.counts = self.counts.plus(counts)
            if not counts.trouble or counts.trouble in self.troubles or len(self.troubles) == _TROUBLES:
                return
            self.troubles = [*self.troubles, counts.trouble]  # new, because others read it
        _log.warning("cache of %s: %s (the run goes on without; see the report)", self.name, counts.trouble)


@dataclass(slots=True)
class _Job:
    cache: GroupCache
    indices: list[int]
    group_pass: int
    keys: set[tuple[int, int]]
    arrays: Mapping[str, Any]
    additional: list[Mapping[str, Any] | None]
    nbytes: int


class Caches:
    """All caches of a loader. It answers what the core asks (`cached.Caching`), and writes.

    Args:
        caches: one for each group, training groups first, None for a group without one.
        training_groups: how many are training groups.
        writers: number of writer threads; with none of them, whoever hands something over writes it.
        limit: bytes that may wait to be written, unless it is a single batch. `Batch.cache` waits until there is room.
        settled: called, on any thread, when something was written that was waited for.
    """

    def __init__(
        self,
        caches: Sequence[GroupCache | None],
        training_groups: int,
        *,
        writers: int,
        limit: int,
        settled: Callable[[Any], None],
    ) -> None:
        self.groups = caches
        self._training_groups = training_groups
        self._limit = limit
        self._settled = settled
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._bytes = 0  # of jobs that wait or are at work
        self._waited_for = False
        self._closing = False
        self.queue_waits = 0
        self.queue_wait_ns = 0
        wanted = any(c is not None and c.kind == "encoded" and not c.spec.readonly for c in caches)
        self._threads = [
            threading.Thread(target=self._write_all, name=f"hydrax_gpu-cacher-{number}", daemon=True)
            for number in range(writers if wanted else 0)
        ]

    def start(self) -> None:
        """Starts the writers."""
        for thread in self._threads:
            thread.start()

    # What the core asks.

    def of(self, plan: BatchPlan) -> GroupCache | None:
        """The cache of a batch's group."""
        return self.groups[plan.group + self._training_groups if plan.validation else plan.group]

    def form(self, plan: BatchPlan) -> Form:
        """How a batch gets its rows."""
        cache = self.of(plan)
        if cache is None or cache.kind == "direct":
            return Form.LOAD
        if cache.refused:
            cache.missed += plan.valid
            return self._miss(cache)
        if cache.rows.complete:
            return Form.READ
        keys = cache.rows.keys(plan.indices[: plan.valid], plan.group_pass)
        with self._changed:  # or something could be written between the two looks, and be seen by neither
            missing = np.flatnonzero(~cache.rows.contains(keys))
            if not len(missing):
                return Form.READ
            items, passes = keys.items[missing].tolist(), keys.passes[missing].tolist()
            if cache.pending.issuperset(zip(items, passes, strict=True)):
                self._waited_for = True
                return Form.WAIT
        cache.missed += len(missing)
        return self._miss(cache)

    def loads(self, plan: BatchPlan) -> bool:
        """Whether a batch that could not be read can be loaded."""
        cache = self.of(plan)
        assert cache is not None
        return self._miss(cache) is Form.LOAD

    def _miss(self, cache: GroupCache) -> Form:
        if not cache.only:
            return Form.LOAD
        cache.dropped += 1
        if cache.dropped == 1:
            _log.warning(
                "a batch of %s is not complete in its cache, %s, and is left out; further ones are counted in the "
                "report", cache.name, cache.spec.location,
            )  # fmt: skip
        return Form.DROP

    def unread(self, plan: BatchPlan, rows: Sequence[int]) -> None:
        """Workers could not read these rows of a batch."""
        cache = self.of(plan)
        assert cache is not None
        # Our own view of the store has to learn it too, or the batch would be read, and not written, like a good one.
        keys = cache.rows.keys([plan.indices[row] for row in rows], plan.group_pass)
        assert cache.rows.store is not None
        try:
            cache.rows.store.read(keys, _scratch(cache.arrays, len(rows)))
        except (CacheError, OSError, MemoryError):  # which the worker has told of
            cache.refused = True

    def count(self, counts: CacheCounts) -> None:
        """A worker has done something."""
        for cache in self.groups:
            if cache is not None and cache.layout == counts.layout:
                cache.add(counts)

    def worker_specs(self) -> dict[int, RowCacheSpec]:
        """How workers get at the caches, by the layouts of cached batches."""
        return {cache.layout: cache.worker_spec for cache in self.groups if cache is not None}

    # Writing.

    def persist(
        self, plan: BatchPlan, arrays: Mapping[str, Any], additional: Sequence[Mapping[str, Any] | None] | None
    ) -> None:
        """Hands a batch over to be written, unless its cache is read-only; waits when too much waits to be written.

        Args:
            plan: what it holds.
            arrays: `jax.Array`s by name, with the rows of the plan.
            additional: of its valid rows.
        """
        cache = self.of(plan)
        if cache is None or cache.spec.readonly:
            return
        valid = plan.valid
        indices = plan.indices[:valid]
        keys = cache.rows.keys(indices, plan.group_pass)
        job = _Job(
            cache,
            indices,
            plan.group_pass,
            set(zip(keys.items.tolist(), keys.passes.tolist(), strict=True)),
            {array.name: arrays[array.name] for array in cache.arrays.arrays},
            [None] * valid if additional is None else list(additional[:valid]),
            sum(array.row_nbytes for array in cache.arrays.arrays) * plan.rows,
        )
        if not self._threads:
            self._write(job)
            return
        with self._changed:
            if self._closing:
                _log.warning("a batch was given to Batch.cache after the loader's `with` block: it is not kept")
                return
            if self._bytes and self._bytes + job.nbytes > self._limit:
                self._wait_for_room(job.nbytes)
            self._bytes += job.nbytes
            cache.pending |= job.keys
            self._jobs.append(job)
            self._changed.notify_all()

    def _wait_for_room(self, nbytes: int) -> None:
        if not self.queue_waits:
            _log.warning(
                "Batch.cache has to wait: %d MiB are to be written already, and the disk, or the device that computes "
                "them, does not keep up. The report counts how long", self._bytes >> 20,
            )  # fmt: skip
        self.queue_waits += 1
        begin = time.perf_counter_ns()
        try:
            while self._bytes and self._bytes + nbytes > self._limit and not self._closing:
                self._changed.wait()
        finally:
            self.queue_wait_ns += time.perf_counter_ns() - begin

    def _write_all(self) -> None:
        # Signals are for the main thread; and as the engine's thread, this one is not to take its processor from it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while True:
            with self._changed:
                while not self._jobs:
                    if self._closing:
                        return
                    self._changed.wait()
                job = self._jobs.pop(0)
            self._write(job)
            with self._changed:
                self._bytes -= job.nbytes
                job.cache.pending -= job.keys
                waited_for, self._waited_for = self._waited_for, False
                self._changed.notify_all()
            del job  # which holds arrays
            if waited_for:
                self._settled(Settled())

    def _write(self, job: _Job) -> None:
        cache, count = job.cache, len(job.indices)
        try:
            rows = {a.name: _host_rows(job.arrays[a.name], count, a.numpy_dtype) for a in cache.arrays.arrays}
        except Exception as error:  # of jax: what computes them has failed, or they were deleted or donated
            trouble = f"arrays that were given to Batch.cache cannot be had: {type(error).__name__}: {error}"
            cache.add(CacheCounts(cache.layout, trouble=trouble))
            return
        cache.rows.write(job.indices, job.group_pass, rows, job.additional)
        counts = cache.rows.take_counts()
        if counts is not None:
            cache.add(counts)

    def close(self) -> None:
        """Waits until all that was handed over is written, and closes the stores. Idempotent."""
        with self._changed:
            self._closing = True
            if self._bytes:
                _log.info("writing what is left for the cache: %d MiB", self._bytes >> 20)
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for cache in self.groups:
            if cache is not None:
                cache.rows.close()


def _host_rows(array: Any, rows: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The first rows of a `jax.Array` on the host, as they are kept; waits for them to be computed."""
    return np.ascontiguousarray(np.asarray(array)[:rows].astype(dtype, copy=False))


def _scratch(layout: Layout, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Memory for rows of a layout that are of no interest."""
    return {a.name: np.empty((rows, *a.item_shape), a.numpy_dtype) for a in layout.wire}


def open_all(specs: Sequence[Callable[[], GroupCache] | None]) -> list[GroupCache | None]:
    """Opens the groups' caches; when one cannot be, closes the others.

    Raises:
        CacheError: as `GroupCache.open`.
    """
    opened: list[GroupCache | None] = []
    try:
        for spec in specs:
            opened.append(None if spec is None else spec())
    except (CacheError, OSError):
        for cache in opened:
            if cache is not None:
                cache.rows.close()
        raise
    return opened
