"""Rows that come from a cache, or go to one, instead of from the loader function alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from hydrax_gpu._exec.protocol import CacheCounts, Failure, Task
from hydrax_gpu._exec.rows import runs
from hydrax_gpu._exec.rowstore import RowCacheSpec, RowStore
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._spec import Layout

__all__ = ["CachedRows"]

_Additional: TypeAlias = "list[dict[str, Any] | None] | None"
_Views: TypeAlias = Sequence[Any]
_Load: TypeAlias = Callable[[Task, _Views], "tuple[_Additional, list[Failure]]"]
_Decode: TypeAlias = Callable[[Task, Sequence[int]], Mapping[int, BaseException]]


class CachedRows:
    """The cache of one layout, as one worker uses it.

    Args:
        spec: how to get at it; it is opened with the first task.
        index: of the layout.
        layout: whose wire regions are cached.
        arena: the slots.
    """

    def __init__(self, spec: RowCacheSpec, index: int, layout: Layout, arena: Arena) -> None:
        self._spec = spec
        self._index = index
        self._layout = layout
        self._arena = arena
        self._cache: RowStore | None = None
        self._views: dict[int, dict[str, npt.NDArray[Any]]] = {}
        self.loads = spec.loads

    def read(self, task: Task) -> tuple[_Additional, tuple[int, ...]]:
        """Reads the rows of a task; what the items' additional data are, and which of them were not read."""
        assert task.keys is not None
        indices, pass_ = task.keys
        unread, additional = self._opened().read(indices, pass_, self._rows(task, 0, len(indices)))
        return additional if any(additional) else None, tuple(unread)

    def fill(
        self,
        task: Task,
        views: _Views,
        load: _Load,
        decode: _Decode,
        pass_over: Callable[[int], None],
    ) -> tuple[_Additional, list[Failure]]:
        """Reads the rows of a task that are in the cache, loads the others, and adds those to it.

        Args:
            task: what to fill.
            views: the loader function's views of each row.
            load: loads the rows of a task.
            decode: decodes rows of a task that were read; what is wrong with which.
            pass_over: told how many items come next that are not to be loaded.
        """
        assert task.keys is not None
        cache, count = self._opened(), len(task.items)
        unread, additional = cache.read(*task.keys, self._rows(task, 0, count))
        if len(unread) < count:
            # A row that was loaded can be decoded, or it was never cached. If it cannot, then something has changed
            # that nobody has told us of, and the loader function may know more about it.
            missing = set(unread)
            undecoded = decode(task, [offset for offset in range(count) if offset not in missing])
            for offset in undecoded:
                additional[offset] = None
            unread = sorted(missing.union(undecoded))
        failures: list[Failure] = []
        done = 0
        for begin, end in runs(unread):
            pass_over(begin - done)
            done = end
            part = _part(task, begin, end)
            loaded, failed = load(part, views[begin:end])
            if loaded is not None:
                additional[begin:end] = loaded
            failures += [failure._replace(offset=begin + failure.offset) for failure in failed]
            if self._arena.status[0]:
                return None, failures  # the loader is closing, and not all of these rows were loaded
            bad = {failure.offset for failure in failed}
            good = [offset for offset in range(end - begin) if offset not in bad]
            for first, last in runs(good):
                self._write(cache, task, begin + first, begin + last, additional)
        pass_over(count - done)
        return additional if any(additional) else None, failures

    def take_counts(self) -> CacheCounts | None:
        """What was done since this was last called."""
        return None if self._cache is None else self._cache.take_counts()

    def close(self) -> None:
        """Closes the cache's files. Idempotent."""
        if self._cache is not None:
            self._cache.close()

    def _write(
        self, cache: RowStore, task: Task, begin: int, end: int, additional: list[dict[str, Any] | None]
    ) -> None:
        assert task.keys is not None
        indices, pass_ = task.keys
        cache.write(indices[begin:end], pass_, self._rows(task, begin, end), additional[begin:end])

    def _opened(self) -> RowStore:
        if self._cache is None:
            self._cache = RowStore(self._spec.store, self._index)
        return self._cache

    def _rows(self, task: Task, begin: int, end: int) -> dict[str, npt.NDArray[Any]]:
        views = self._views.get(task.slot)
        if views is None:
            views = self._views[task.slot] = self._layout.wire_views(self._arena.slot(task.slot))
        return {name: view[task.row + begin : task.row + end] for name, view in views.items()}


def _part(task: Task, begin: int, end: int) -> Task:
    if begin == 0 and end == len(task.items):
        return task
    return task._replace(
        row=task.row + begin,
        items=task.items[begin:end],
        seeds=None if task.seeds is None else task.seeds[begin:end],
    )
