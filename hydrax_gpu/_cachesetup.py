"""The caches of a `Dataloader`'s groups: opening them, what `Batch.cache` needs, and what the report says of them."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hydrax_gpu import _place
from hydrax_gpu._groupcache import store_spec
from hydrax_gpu._jobs import RuntimeStore, next_name
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import Layout
from hydrax_gpu.batch import CacheSink
from hydrax_gpu.group import DataGroup, cache_of, data_of, layout_of, plan_of
from hydrax_gpu.report import CacheInfo

if TYPE_CHECKING:
    from hydrax_gpu._engine.caches import Caches, GroupCache

__all__ = ["all_layouts", "cache_infos", "cache_sink", "check_workers", "open_caches"]

_log = logging.getLogger("hydrax_gpu")


def all_layouts(groups: Sequence[DataGroup[Any]]) -> tuple[list[Layout], list[int]]:
    """The layouts that batches can have, and which is that of each group's cached batches.

    The first are the groups', one each; those of cached batches follow, where they differ from them.
    """
    layouts = [layout_of(group) for group in groups]
    cached: list[int] = []
    for index, group in enumerate(groups):
        cache = cache_of(group)
        if cache is None or cache.layout is layouts[index]:
            cached.append(index)
        else:
            cached.append(len(layouts))
            layouts.append(cache.layout)
    return layouts, cached


def check_workers(count: int, groups: Sequence[DataGroup[Any]]) -> None:
    """Raises ValueError if there is nobody to load what is to be loaded; `count` is negative if it is not fixed."""
    loaded = [group for group in groups if group.loader_size is not None]
    if count == 0 and loaded:
        raise ValueError(
            "loader_count: got 0, wanted at least 1. Only when no group has loader_arrays, and all batches come from "
            f"caches, are workers not needed; {loaded[0]!r} has some"
        )


def open_caches(
    training: Sequence[DataGroup[Any]],
    validation: Sequence[DataGroup[Any]],
    cached_layouts: Sequence[int],
    *,
    writers: int,
    depth: int,
    shards: _place.Shards | None,
    settled: Callable[[Any], None],
) -> Caches | None:
    """Opens what caches the groups have; None if they have none.

    Raises:
        RuntimeError: several processes have no means to agree on what is in them.
        CacheMismatch: one is of something else.
        CacheError: one cannot be opened.
    """
    groups = (*training, *validation)
    declared = [cache_of(group) for group in groups]
    if not any(cache is not None and cache.location is not None for cache in declared):
        return None
    from hydrax_gpu._engine.agreeing import Agreement
    from hydrax_gpu._engine.caches import QUEUE_BYTES, Caches, GroupCache, open_all
    from hydrax_gpu._engine.messages import Settled

    agreement: Agreement | None = None
    encoded = any(cache is not None and cache.location is not None and cache.kind == "encoded" for cache in declared)
    if encoded and shards is not None and shards.several:
        agreement = Agreement(
            RuntimeStore(), next_name("cache"), shards.process, shards.processes, depth,
            lambda error: settled(Settled(error)),
        )  # fmt: skip
    openers: list[Callable[[], GroupCache] | None] = []
    for index, (group, cache) in enumerate(zip(groups, declared, strict=True)):
        if cache is None or cache.location is None:
            openers.append(None)
            continue
        is_validation = index >= len(training)
        name = f"validation group {index - len(training)}" if is_validation else f"training group {index}"
        spec = store_spec(cache, plan_of(group), data_of(group), validation=is_validation)
        layout = cached_layouts[index]
        openers.append(partial(GroupCache.open, name, cache.kind, spec, layout, cache.layout, cache.only))
    return Caches(
        open_all(openers),
        len(training),
        writers=writers,
        limit=QUEUE_BYTES,
        settled=settled,
        agreement=agreement,
        **({} if shards is None else {"alone": shards.alone}),
    )


class _ShardedSink:
    """Writes what this process is to write of global batches.

    Args:
        caches: None where nothing is kept.
        shards: what this process has of each batch.
        layouts: for each group the layout of its cached batches.
        training_groups: how many of the groups are training groups.
    """

    def __init__(
        self, caches: Caches | None, shards: _place.Shards, layouts: Sequence[int], training_groups: int
    ) -> None:
        self._caches = caches
        self._shards = shards
        self._layouts = layouts
        self._training_groups = training_groups
        self.shardings: Mapping[str, _place.Sharding] = shards.shardings

    def persist(
        self, plan: BatchPlan, arrays: Mapping[str, Any], additional: Sequence[Mapping[str, Any] | None] | None
    ) -> None:
        """As `Caches.persist`, of the rows that this process is to write."""
        if self._caches is None:
            return
        if plan.share is None:
            self._caches.persist(plan, arrays, additional)
            return
        group = plan.group + self._training_groups if plan.validation else plan.group
        mine = plan.share.rows
        owned = self._shards.owned(self._layouts[group], plan.share.batch_rows)
        places = [bisect_left(mine, row) for row in owned if row < plan.share.batch_valid]
        self._caches.persist(plan, arrays, additional, places)


def cache_sink(
    caches: Caches | None, shards: _place.Shards | None, cached_layouts: Sequence[int], training_groups: int
) -> CacheSink | None:
    """Where `Batch.cache` leaves what is to be kept; None when nothing is kept, nor anything to be checked."""
    return caches if shards is None else _ShardedSink(caches, shards, cached_layouts, training_groups)


def cache_infos(caches: Caches | None) -> tuple[CacheInfo, ...]:
    """What the report says of the caches."""
    if caches is None:
        return ()
    return tuple(_info(cache, caches) for cache in caches.groups if cache is not None)


def _info(cache: GroupCache, caches: Caches) -> CacheInfo:
    counts, store = cache.counts, cache.rows.store
    assert store is not None
    encoded = cache.kind == "encoded"
    return CacheInfo(
        group=cache.name,
        location=cache.spec.location,
        kind="encoded" if encoded else "direct",
        readonly=cache.spec.readonly,
        hits=counts.hits,
        misses=cache.missed if encoded else counts.misses,
        bad=counts.bad,
        dropped_batches=cache.dropped,
        written=counts.written,
        present=counts.present,
        refused=counts.refused,
        bytes_read=counts.bytes_read,
        bytes_written=counts.bytes_written,
        compression=MappingProxyType(
            {array.name: array.compression for array in cache.spec.descriptor.arrays if array.compression}
        ),
        compression_ratio=store.compression_ratio(),
        read_path=store.read_path,
        read_path_reason=store.read_path_reason,
        queue_waits=caches.queue_waits if encoded else 0,
        queue_wait_seconds=caches.queue_wait_ns / 1e9 if encoded else 0.0,
        troubles=tuple(cache.troubles),
    )
