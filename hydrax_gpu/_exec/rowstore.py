"""A store as the loader's workers and writers use it: by the rows of batches, and without raising for what is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import Keys, Store, StoreSpec
from hydrax_gpu._exec.int8rows import Int8Rows
from hydrax_gpu._exec.protocol import CacheCounts
from hydrax_gpu.errors import CacheError, UnsafeCache

__all__ = ["RowCacheSpec", "RowStore"]

_REFRESH_SECONDS = 1.0
"""How old what is known about others' entries may be when something is looked for that nobody expects to be there."""


@dataclass(frozen=True, slots=True)
class RowCacheSpec:
    """How a worker gets at the cache of a layout.

    Attributes:
        store: what to open.
        loads: whether what is not there is loaded by the worker, and added.
    """

    store: StoreSpec
    loads: bool


class RowStore:
    """A store, and counts of what was done with it. What is wrong with the cache is counted, and never raised.

    All methods may be called from any thread.

    Args:
        spec: of the store.
        layout: index of the layout whose rows are read and written.
        store: the store, if it is open already.
    """

    def __init__(self, spec: StoreSpec, layout: int, store: Store | None = None) -> None:
        self.layout = layout
        self.store = store
        self.by_pass = spec.descriptor.seeded == "pass"
        self._readonly = spec.readonly
        self._int8 = Int8Rows.of(spec.descriptor, spec.kernels)
        self._refreshed = time.monotonic()
        self._lock = threading.Lock()  # of the counts
        self._counts = CacheCounts(layout)
        if store is None:
            try:
                self.store = Store.open(spec)
            except (CacheError, OSError) as error:
                self._count(trouble=f"a worker could not open the cache, and does without: {error}")
        if self.store is not None:
            self._tell_unreadable(self.store)

    def keys(self, indices: Sequence[int] | npt.NDArray[np.int64], pass_: int) -> Keys:
        """The keys of items in a pass over their group. Where entries are one an item, the pass does not matter."""
        items = np.asarray(indices, np.int64)
        return Keys(items, np.full(len(items), pass_ if self.by_pass else 0, np.int64))

    @property
    def complete(self) -> bool:
        """Whether every item is known to have an entry."""
        return self.store is not None and self.store.complete

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of the keys have an entry, by what was known a second ago."""
        if self.store is None:
            return np.zeros(len(keys.items), np.bool_)
        there = self.store.contains(keys)
        if not there.all() and time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            there = self._refresh(self.store, keys)
        return there

    def read(
        self, indices: Sequence[int], pass_: int, rows: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[list[int], list[dict[str, Any] | None]]:
        """Reads items' rows.

        Args:
            indices: of `n` items.
            pass_: over the group.
            rows: for each array its `n` rows, C-contiguous.

        Returns:
            Offsets of the items that were not read, ascending; and the additional data of all, None for those.
        """
        count = len(indices)
        additional: list[dict[str, Any] | None] = [None] * count
        store = self.store
        if store is None:
            self._count(misses=count)
            return list(range(count)), additional
        keys = self.keys(indices, pass_)
        parts, unread = [(0, count)], list[int]()
        if not store.complete:
            there = store.contains(keys)
            if not there.all():  # others may have added them; to look costs less than to load
                there = self._refresh(store, keys)
            if not there.all():
                parts, unread = _runs(there), np.flatnonzero(~there).tolist()
        bad: list[int] = []
        hits = nbytes = 0
        finish = None
        if self._int8 is not None:
            rows, finish = self._int8.to_read(rows)
        for begin, end in parts:
            part, views = keys, rows
            if end - begin < count:
                part = Keys(keys.items[begin:end], keys.passes[begin:end])
                views = {name: view[begin:end] for name, view in rows.items()}
            try:
                result = store.read(part, views)
            except (CacheError, OSError, MemoryError) as error:
                self._count(trouble=str(error) if isinstance(error, UnsafeCache) else f"a read has failed: {error}")
                bad.extend(range(begin, end))
                continue
            if result.bad:
                bad.extend(begin + offset for offset, _ in result.bad)
            additional[begin:end] = result.additional
            hits += end - begin - len(result.bad)
            nbytes += result.nbytes
        self._count(hits=hits, misses=len(unread), bad=len(bad), bytes_read=nbytes)
        if finish is not None:
            good = np.ones(count, np.bool_)
            good[[*unread, *bad]] = False
            for begin, end in _runs(good):
                finish(begin, end)
        return sorted([*unread, *bad]), additional

    def write(
        self,
        indices: Sequence[int],
        pass_: int,
        rows: Mapping[str, npt.NDArray[Any]],
        additional: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Adds items' rows; arguments as of `read`. Those that are there already are passed over."""
        store = self.store
        if store is None or self._readonly or store.disabled is not None:
            return
        if self._int8 is not None:
            rows, refused = self._int8.to_write(rows)
            if refused:
                self._count_refused(indices, refused)
                good = np.ones(len(indices), np.bool_)
                good[list(refused)] = False
                for begin, end in _runs(good):
                    some = {name: view[begin:end] for name, view in rows.items()}
                    self.write(indices[begin:end], pass_, some, additional[begin:end])
                return
        try:
            written = store.write(self.keys(indices, pass_), rows, additional)
        except (TypeError, UnsafeCache) as error:
            if len(indices) > 1:  # because of what one of the items has with it; the others are as good as any
                for row in range(len(indices)):
                    part = {name: view[row : row + 1] for name, view in rows.items()}
                    self.write(indices[row : row + 1], pass_, part, additional[row : row + 1])
            else:
                self._count(trouble=f"some items cannot be cached, the first is item {indices[0]}: {error}")
            return
        except (CacheError, OSError, MemoryError) as error:
            self._count(trouble=f"nothing is added to the cache any more: {error}")
            return
        if store.disabled is None:
            nbytes = sum(view.nbytes for view in rows.values()) // len(indices) * written
            self._count(written=written, present=len(indices) - written, bytes_written=nbytes)

    def take_counts(self) -> CacheCounts | None:
        """What was done since this was last called; None for nothing."""
        nothing = CacheCounts(self.layout)
        with self._lock:
            counts, self._counts = self._counts, nothing
        return counts if counts != nothing else None

    def close(self) -> None:
        """Closes the store. Idempotent."""
        if self.store is not None:
            self.store.close()

    def _refresh(self, store: Store, keys: Keys) -> npt.NDArray[np.bool_]:
        try:
            store.refresh()
        except (CacheError, OSError) as error:
            self._count(trouble=f"what others have added to the cache cannot be seen: {error}")
        self._refreshed = time.monotonic()
        self._tell_unreadable(store)
        return store.contains(keys)

    def _tell_unreadable(self, store: Store) -> None:
        if unreadable := store.unreadable:
            self._count(trouble=f"entries of others count as missing, because files cannot be read: {unreadable}")

    def _count_refused(self, indices: Sequence[int], refused: Mapping[int, str]) -> None:
        row, reason = next(iter(refused.items()))
        self._count(
            refused=len(refused), trouble=f"some items cannot be cached, the first is item {indices[row]}: {reason}"
        )

    def _count(self, **counts: Any) -> None:
        with self._lock:
            self._counts = self._counts.plus(CacheCounts(self.layout, **counts))


def _runs(there: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """`(begin, end)` of the runs of True."""
    edges = np.flatnonzero(np.diff(there.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
