"""Filling the rows of a task: the one loop that runs once an item, in every executor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy.typing as npt

from hydrax_gpu._exec.protocol import Failure, LoaderFunc, Task
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._spec import Layout

__all__ = ["ChunkRunner", "describe", "format_traceback"]

_ItemArrays: TypeAlias = MappingProxyType[str, npt.NDArray[Any]]


class ChunkRunner:
    """Runs tasks of one worker against an arena.

    The argument views of a slot's rows are made when the slot is first used and kept: making them costs more than
    many a loader function.
    """

    def __init__(self, loader: LoaderFunc, layouts: Sequence[Layout], arena: Arena, worker: int) -> None:
        self._loader = loader
        self._layouts = layouts
        self._arena = arena
        self._status = arena.status
        self._word = 1 + worker
        self._begun = 0
        self._views: dict[tuple[int, int], Sequence[_ItemArrays]] = {}

    def run(self, task: Task) -> tuple[int, list[dict[str, Any] | None] | None, tuple[Failure, ...]]:
        """Returns `(busy_ns, additional, failures)` as `Result` has them."""
        items = task.items
        seeds: Sequence[int | None] = task.seeds if task.seeds is not None else (None,) * len(items)
        views = self._item_views(task.slot, task.layout)[task.row : task.row + len(items)]
        additional: list[dict[str, Any] | None] | None = None
        failures: list[Failure] = []
        loader, status, word = self._loader, self._status, self._word
        first = begun = self._begun
        start = time.perf_counter_ns()
        for item, arrays, seed in zip(items, views, seeds, strict=True):
            if status[0]:  # the loader is closing; nobody will look at this slot again
                break
            begun += 1
            status[word] = begun
            try:
                result = loader(item, arrays, seed)
            except (Exception, SystemExit) as error:
                failures.append(_failure(begun - first - 1, error))
                continue
            if result:
                if not isinstance(result, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                    failures.append(_failure(begun - first - 1, _not_a_dict(result)))
                    continue
                if additional is None:
                    additional = _nothing(len(items))
                additional[begun - first - 1] = result
        busy = time.perf_counter_ns() - start
        self._begun = begun
        return busy, additional, tuple(failures)

    def _item_views(self, slot: int, layout: int) -> Sequence[_ItemArrays]:
        views = self._views.get((slot, layout))
        if views is None:
            views = self._layouts[layout].item_views(self._arena.slot(slot))
            self._views[slot, layout] = views
        return views


def _nothing(count: int) -> list[dict[str, Any] | None]:
    return [None] * count


def describe(error: BaseException) -> str:
    """`ValueError: the text`, the way a traceback ends."""
    import traceback  # costs a worker's start some milliseconds, and most never need it

    return "".join(traceback.format_exception_only(error)).strip()


def format_traceback(error: BaseException) -> str:
    """The traceback as text, from the user's function on: our own frame above it is left out."""
    import traceback

    frames = error.__traceback__
    if frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _failure(offset: int, error: BaseException) -> Failure:
    return Failure(offset, describe(error), format_traceback(error), error)


def _not_a_dict(result: object) -> TypeError:
    return TypeError(
        f"the loader function returned {type(result).__name__}, wanted a dict of additional data or None "
        "(arrays are filled in place, not returned)"
    )
