"""Filling the rows of a task: the one loop that runs once an item, in every executor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

from hydrax_gpu._exec.protocol import Failure, LoaderFunc, Task
from hydrax_gpu._mem.arena import WORDS, Arena
from hydrax_gpu._spec import Layout

if TYPE_CHECKING:
    from hydrax_gpu._exec.decoding import RowDecoder

__all__ = ["ChunkRunner", "describe", "format_traceback"]

_PATIENCE = 0.05
"""Seconds between two looks at whether the loader closes, while a worker waits to try an item again."""

_ItemArrays: TypeAlias = MappingProxyType[str, npt.NDArray[Any]]


class ChunkRunner:
    """Runs tasks of one worker against an arena.

    The argument views of a slot's rows are made when the slot is first used and kept: making them costs more than
    many a loader function.

    Args:
        loader: the user's function.
        layouts: layout of each group's slots.
        arena: the slots.
        worker: number of the worker.
        retries: how often an item is tried again.
        backoff: seconds before the first retry; each further one waits twice as long.
        keep: whether failures keep the exception.
        catch: what the loader function may raise without more harm than a bad item.
        kernels: the file of the kernels' host library, or None for NumPy to do their work.
    """

    def __init__(
        self,
        loader: LoaderFunc,
        layouts: Sequence[Layout],
        arena: Arena,
        worker: int,
        *,
        retries: int = 0,
        backoff: float = 0.0,
        keep: bool = True,
        catch: tuple[type[BaseException], ...] = (Exception, SystemExit),
        kernels: str | None = None,
    ) -> None:
        self._loader = loader
        self._layouts = layouts
        self._arena = arena
        self._status = arena.status
        self._worker = worker
        self._word = 1 + WORDS * worker
        self._retries = retries
        self._backoff = backoff
        self._keep = keep
        self._catch = catch
        self._begun = 0
        self._tasks = 0
        self._loud = 0  # the last of them with something to tell
        self._views: dict[tuple[int, int], Sequence[_ItemArrays]] = {}
        self._decoders: dict[int, RowDecoder] = {}
        for index, layout in enumerate(layouts):
            if layout.decodes:
                from hydrax_gpu._exec.decoding import RowDecoder  # most workers need none of it

                self._decoders[index] = RowDecoder(layout, arena, kernels)

    def run(self, task: Task) -> tuple[int, list[dict[str, Any] | None] | None, tuple[Failure, ...]]:
        """Returns `(busy_ns, additional, failures)` as `Result` has them."""
        items = task.items
        seeds: Sequence[int | None] = task.seeds if task.seeds is not None else (None,) * len(items)
        views = self._item_views(task.slot, task.layout)[task.row : task.row + len(items)]
        decoder = self._decoders.get(task.layout) if task.decode else None
        additional: list[dict[str, Any] | None] | None = None
        failures: list[Failure] = []
        loader, status, word, catch = self._loader, self._status, self._word, self._catch
        first = begun = self._begun
        status[word + 1] = start = time.perf_counter_ns()
        for item, arrays, seed in zip(items, views, seeds, strict=True):
            if status[0]:  # the loader is closing; nobody will look at this slot again
                break
            begun += 1
            status[word] = begun
            try:
                result = loader(item, arrays, seed)
                if result and not isinstance(result, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise _not_a_dict(result)
            except catch as error:
                failure, result = self._retry(task, begun - first - 1, arrays, error)
                if failure is not None:
                    failures.append(failure)
                    continue
            if result:
                if additional is None:
                    additional = _nothing(len(items))
                additional[begun - first - 1] = result
        if decoder is not None and not status[0]:
            failures, additional = self._decode(decoder, task, views, failures, additional)
        busy = time.perf_counter_ns() - start
        self._begun = begun
        self._tasks += 1
        if failures or additional is not None:
            self._loud = self._tasks
        self._arena.tell_done(self._worker, self._tasks, self._loud)
        return busy, additional, tuple(failures)

    def _decode(
        self,
        decoder: RowDecoder,
        task: Task,
        views: Sequence[_ItemArrays],
        failures: list[Failure],
        additional: list[dict[str, Any] | None] | None,
    ) -> tuple[list[Failure], list[dict[str, Any] | None] | None]:
        """Decodes the rows that were loaded; those that cannot be are tried again from their loading on."""
        failed = {failure.offset for failure in failures}
        begin = 0
        for end in (*sorted(failed), len(task.items)):
            if begin < end:
                for row, error in decoder(task.slot, task.row + begin, task.row + end).items():
                    offset = row - task.row
                    failure, result = self._retry(task, offset, views[offset], error)
                    if failure is not None:
                        failures.append(failure)
                    if additional is None and result:
                        additional = _nothing(len(task.items))
                    if additional is not None:
                        additional[offset] = result or None
            begin = end + 1
        return failures, additional

    def _retry(
        self, task: Task, offset: int, arrays: _ItemArrays, error: BaseException
    ) -> tuple[Failure | None, dict[str, Any] | None]:
        item, seed = task.items[offset], task.seeds[offset] if task.seeds is not None else None
        decoder, row = self._decoders.get(task.layout) if task.decode else None, task.row + offset
        for attempt in range(self._retries):
            if not self._wait(self._backoff * 2**attempt):
                break
            try:
                result = self._loader(item, arrays, seed)
                if result and not isinstance(result, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise _not_a_dict(result)
                # Here already, so that what cannot be decoded is not tried more often than what cannot be loaded.
                if decoder is not None and (wrong := decoder(task.slot, row, row + 1)):
                    raise wrong[row]
                return None, result
            except self._catch as again:
                error = again
        tries = f" (tried {self._retries + 1} times)" if self._retries else ""
        failure = Failure(offset, describe(error) + tries, format_traceback(error), error if self._keep else None)
        del error  # which refers to this frame
        return failure, None

    def _wait(self, seconds: float) -> bool:
        """Waits; False, and at once, when the loader is closing."""
        end = time.monotonic() + seconds
        while not self._status[0]:
            left = end - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, _PATIENCE))
        return False

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


def _not_a_dict(result: object) -> TypeError:
    return TypeError(
        f"the loader function returned {type(result).__name__}, wanted a dict of additional data or None "
        "(arrays are filled in place, not returned)"
    )
