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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import Keys, Store, StoreSpec
from hydrax_gpu._engine.agreeing import UNSHARED, Agreement
from hydrax_gpu._engine.cached import Agreed, Form
from hydrax_gpu._engine.hostrows import host_rows
from hydrax_gpu._engine.messages import Settled
from hydrax_gpu._exec.protocol import CacheCounts
from hydrax_gpu._exec.rowstore import RowCacheSpec, RowStore
from hydrax_gpu._plan import BatchPlan, agreed
from hydrax_gpu._spec import Layout
from hydrax_gpu.errors import CacheDamaged, CacheError

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
        flush: waits until all that was handed over by now is written.
        found_damaged: keys of entries that were found damaged, for other processes to know of.
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
    flush: Callable[[], None] = lambda: None
    found_damaged: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(name: str, kind: str, spec: StoreSpec, layout: int, arrays: Layout, only: bool) -> GroupCache:
        """Opens the store.

        Raises:
            CacheMismatch: it is of something else.
            CacheError: it cannot be opened.
        """
        rows = RowStore(spec, layout, Store.open(spec))
        cache = GroupCache(name, kind, spec, layout, arrays, only, rows, CacheCounts(layout))
        if (counts := rows.take_counts()) is not None:
            cache.add(counts)
        return cache

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

    def learn(self, keys: Keys) -> None:
        """Reads entries of which somebody says that they are damaged, so that this process's view of the store knows.

        Otherwise such an entry would be read, and not written, like a good one.
        """
        assert self.rows.store is not None
        try:
            bad = self.rows.store.read(keys, _scratch(self.spec, len(keys.items))).bad
        except (CacheError, OSError, MemoryError):  # which the worker has told of
            self.refused = True
            return
        with self.lock:
            self.found_damaged.update((int(keys.items[at]), int(keys.passes[at])) for at, _ in bad)

    # What an agreement with other processes asks (`agreeing.SharedCache`).

    @property
    def topic(self) -> dict[str, Any]:
        """What the cache is of."""
        return {"group": self.name, "length": self.length, "data": self.spec.descriptor.fingerprint}

    @property
    def length(self) -> int:
        """Items of the group."""
        return self.spec.descriptor.length

    @property
    def by_pass(self) -> bool:
        """Whether each pass has entries of its own."""
        return self.rows.by_pass

    def seen(self, group_pass: int) -> npt.NDArray[np.uint8]:
        """The items that have an entry for a pass, as far as can be seen now; of what is being written, all."""
        store = self.rows.store
        if store is None or self.refused:
            return agreed.no_items(self.length)
        self.flush()
        try:
            store.refresh()
        except (CacheError, OSError) as error:
            trouble = f"what others have added to the cache cannot be seen: {error}"
            self.add(CacheCounts(self.layout, trouble=trouble))
        return agreed.seen(self.length, lambda items: store.contains(self.rows.keys(items, group_pass)))

    def damaged(self, group_pass: int) -> set[int]:
        """Items whose entry for a pass was found damaged, and was not told of yet."""
        pass_ = group_pass if self.by_pass else 0
        with self.lock:
            return {item for item, its_pass in self.found_damaged if its_pass == pass_}

    def told(self, group_pass: int, items: Collection[int], *, unshared: bool) -> None:
        """These are damaged, as all processes know now; and whether there are entries that not all of them see."""
        if items:
            keys = self.rows.keys(sorted(items), group_pass)
            assert self.rows.store is not None
            there = np.flatnonzero(self.rows.store.contains(keys))
            if len(there):
                self.learn(Keys(keys.items[there], keys.passes[there]))
            with self.lock:
                self.found_damaged -= set(zip(keys.items.tolist(), keys.passes.tolist(), strict=True))
        if unshared:
            self.add(CacheCounts(self.layout, trouble=UNSHARED))


@dataclass(slots=True)
class _Job:
    cache: GroupCache
    indices: list[int]
    group_pass: int
    keys: set[tuple[int, int]]
    arrays: Mapping[str, Any]
    rows: Sequence[int]
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
        agreement: with the other processes of a job that have parts of the same batches.
        alone: `(layout, rows of the global batch, row of this process's)`: whether no other process has that row.
    """

    def __init__(
        self,
        caches: Sequence[GroupCache | None],
        training_groups: int,
        *,
        writers: int,
        limit: int,
        settled: Callable[[Any], None],
        agreement: Agreement | None = None,
        alone: Callable[[int, int, int], bool] = lambda layout, rows, row: True,
    ) -> None:
        self.shardings: Mapping[str, Any] = {}
        """That what `Batch.cache` is given must have: any will do, as there is one device."""
        self._agreement = agreement
        self._alone = alone
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
        for cache in caches:
            if cache is not None:
                cache.flush = partial(self._flush, cache)
        wanted = any(c is not None and c.kind == "encoded" and not c.spec.readonly for c in caches)
        self._threads = [
            threading.Thread(target=self._write_all, name=f"hydrax_gpu-cacher-{number}", daemon=True)
            for number in range(writers if wanted else 0)
        ]

    def start(self) -> None:
        """Starts the threads."""
        if self._agreement is not None:
            self._agreement.start()
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
        if self._agreement is not None:
            return self._form_agreed(self._agreement, cache, plan)
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

    def _form_agreed(self, agreement: Agreement, cache: GroupCache, plan: BatchPlan) -> Form:
        """As `form`, of what all processes have a part of: by what was planned, and agreed on, and by nothing else."""
        items = agreement.of(self.groups.index(cache), cache, plan)
        if items is None:
            return Form.WAIT
        missing = agreed.missing(items, plan.global_indices)
        if not missing:
            return Form.READ
        cache.missed += agreed.missing(items, plan.indices[: plan.valid])
        return self._miss(cache)

    @property
    def agreed(self) -> Agreed | None:
        """What to do when a batch cannot be read that several processes have agreed to read; see `CoreConfig`."""
        return None if self._agreement is None else self

    def stands_in(self, plan: BatchPlan, item: int) -> bool:
        """Whether an item can be read in the place of another."""
        cache = self.of(plan)
        assert cache is not None and self._agreement is not None
        items = self._agreement.of(self.groups.index(cache), cache, plan)
        return items is not None and not agreed.missing(items, [item])

    def refusal(self, plan: BatchPlan, rows: Sequence[int]) -> Exception | None:
        """The error to end the run with, if some other process has one of these rows, too, and may have read it."""
        cache = self.of(plan)
        assert cache is not None and plan.share is not None
        items = [plan.indices[row] for row in rows if not self._alone(cache.layout, plan.share.batch_rows, row)]
        return CacheDamaged(cache.spec.location, cache.name, items) if items else None

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
        cache.learn(cache.rows.keys([plan.indices[row] for row in rows], plan.group_pass))

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
        self,
        plan: BatchPlan,
        arrays: Mapping[str, Any],
        additional: Sequence[Mapping[str, Any] | None] | None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Hands a batch over to be written, unless its cache is read-only; waits when too much waits to be written.

        Args:
            plan: what it holds.
            arrays: `jax.Array`s by name, with the rows of the plan; of a share, with those of the global batch.
            additional: of its valid rows.
            rows: those to write, by their places in the plan; the valid ones by default.
        """
        cache = self.of(plan)
        if cache is None or cache.spec.readonly:
            return
        if rows is None:
            rows = range(plan.valid)
        if not rows:
            return
        indices = [plan.indices[row] for row in rows]
        keys = cache.rows.keys(indices, plan.group_pass)
        job = _Job(
            cache,
            indices,
            plan.group_pass,
            set(zip(keys.items.tolist(), keys.passes.tolist(), strict=True)),
            {array.name: arrays[array.name] for array in cache.arrays.arrays},
            rows if plan.share is None else [plan.share.rows[row] for row in rows],
            [None if additional is None else additional[row] for row in rows],
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

    def _flush(self, cache: GroupCache) -> None:
        with self._changed:
            waiting = set(cache.pending)
            while not self._closing and not waiting.isdisjoint(cache.pending):
                self._changed.wait()

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
        cache = job.cache
        try:
            rows = {a.name: host_rows(job.arrays[a.name], job.rows, a.numpy_dtype) for a in cache.arrays.arrays}
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
        if self._agreement is not None:
            self._agreement.close()
        for cache in self.groups:
            if cache is not None:
                cache.rows.close()


def _scratch(spec: StoreSpec, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Memory for entries, as they are stored, that are of no interest."""
    return {array.name: np.empty((rows, array.nbytes), np.uint8) for array in spec.descriptor.arrays}


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
