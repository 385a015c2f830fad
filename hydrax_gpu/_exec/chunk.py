"""Filling the rows of a task: the one loop that runs once an item, or one call for all of them, in every executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy.typing as npt

from hydrax_gpu._exec.protocol import CacheCounts, Failure, LoaderFunc, RowsLoader, Task
from hydrax_gpu._exec.rows import LoadRows, Outcome, load_rows, runs
from hydrax_gpu._mem.arena import WORDS, Arena
from hydrax_gpu._spec import Layout

if TYPE_CHECKING:
    from hydrax_gpu._exec.cached import CachedRows
    from hydrax_gpu._exec.decoding import RowDecoder
    from hydrax_gpu._exec.rowstore import RowCacheSpec
    from hydrax_gpu._mem.encoded import EncodingLoader

__all__ = ["ChunkRunner", "Done", "describe", "format_traceback"]

_PATIENCE = 0.05
"""Seconds between two looks at whether the loader closes, while a worker waits to try an item again."""

_ItemArrays: TypeAlias = MappingProxyType[str, npt.NDArray[Any]]
_Additional: TypeAlias = "list[dict[str, Any] | None] | None"


class Done(NamedTuple):
    """What became of a task; the fields are those of `Result`."""

    busy_ns: int
    additional: _Additional
    failures: tuple[Failure, ...]
    counts: dict[str, int] | None
    unread: tuple[int, ...] = ()
    caches: CacheCounts | None = None
    end_ns: int = 0
    decode_ns: int = 0

    @property
    def loud(self) -> bool:
        """Whether there is anything to tell that cannot wait; what caches count can."""
        return self.additional is not None or bool(self.failures or self.counts or self.unread)


class ChunkRunner:
    """Runs tasks of one worker against an arena.

    The argument views of a slot's rows are made when the slot is first used and kept: making them costs more than
    many a loader function.

    A loader may have a method `take_counts()`, which returns a dict of lines of text and how often something happened
    since it was last called, or None: it is called after each task, for the report.

    Args:
        loader: the user's function, or an object with `load_rows`, see `protocol.RowsLoader`.
        layouts: layout of each group's slots.
        arena: the slots.
        worker: number of the worker.
        retries: how often an item is tried again.
        backoff: seconds before the first retry; each further one waits twice as long.
        keep: whether failures keep the exception.
        catch: what the loader function may raise without more harm than a bad item.
        kernels: the file of the kernels' host library, or None for NumPy to do their work.
        caches: the caches, by the index of their layout.
    """

    def __init__(
        self,
        loader: LoaderFunc | RowsLoader,
        layouts: Sequence[Layout],
        arena: Arena,
        worker: int,
        *,
        retries: int = 0,
        backoff: float = 0.0,
        keep: bool = True,
        catch: tuple[type[BaseException], ...] = (Exception, SystemExit),
        kernels: str | None = None,
        caches: Mapping[int, RowCacheSpec] | None = None,
    ) -> None:
        self._loader = cast("LoaderFunc", loader)  # which is not called when there is `load_rows`
        self._load_rows: LoadRows | None = getattr(loader, "load_rows", None)
        self._take_counts: Callable[[], dict[str, int] | None] | None = getattr(loader, "take_counts", None)
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
        self._decode_ns = 0  # in the task at hand
        self._views: dict[tuple[int, int], Sequence[_ItemArrays]] = {}
        self._files: dict[tuple[int, int], dict[int, _ItemArrays]] = {}
        self._decoders: dict[int, RowDecoder] = {}
        for index, layout in enumerate(layouts):
            if layout.decodes:
                from hydrax_gpu._exec.decoding import RowDecoder  # most workers need none of it

                self._decoders[index] = RowDecoder(layout, arena, kernels)
        self._caches: dict[int, CachedRows] = {}
        if caches:
            from hydrax_gpu._exec.cached import CachedRows

            self._caches = {index: CachedRows(spec, index, layouts[index], arena) for index, spec in caches.items()}

    def run(self, task: Task) -> Done:
        """Loads the rows of a task, and decodes them."""
        cache = self._caches.get(task.layout) if task.keys is not None else None
        reads = cache is not None and not cache.loads
        views = () if reads else self._item_views(task.slot, task.layout)[task.row : task.row + len(task.items)]
        self._decode_ns = 0
        self._status[self._word + 1] = start = time.perf_counter_ns()
        unread: tuple[int, ...] = ()
        failures: Sequence[Failure] = ()
        if cache is None:
            additional, failures = self._load(task, views)
        elif reads:
            additional, unread = cache.read(task)
            self._pass_over(len(task.items))
            if task.layout in self._decoders:
                missing = set(unread)
                wrong = self._decode(task, [row for row in range(len(task.items)) if row not in missing])
                unread = tuple(sorted(missing.union(wrong)))
        else:
            additional, failures = cache.fill(task, views, self._load, self._decode, self._pass_over)
        end = time.perf_counter_ns()
        counts = self._take_counts() if self._take_counts is not None else None
        caches = None if cache is None else cache.take_counts()
        done = Done(end - start, additional, tuple(failures), counts, unread, caches, end, self._decode_ns)
        self._tasks += 1
        if done.loud:
            self._loud = self._tasks
        self._arena.tell_done(self._worker, self._tasks, self._loud)
        return done

    def close(self) -> None:
        """Closes what tasks have opened. A process that ends need not call it. Idempotent."""
        for cache in self._caches.values():
            cache.close()

    def _load(self, task: Task, views: Sequence[_ItemArrays]) -> tuple[_Additional, list[Failure]]:
        if self._load_rows is None or task.encode:  # what is left to a device is read, and no more
            return self._one_by_one(task, views)
        return self._together(self._load_rows, task, views)

    def _pass_over(self, items: int) -> None:
        """So many items need no loading; they are begun and done."""
        self._begun += items
        self._status[self._word] = self._begun

    # A call for each item.

    def _one_by_one(self, task: Task, views: Sequence[_ItemArrays]) -> tuple[_Additional, list[Failure]]:
        items = task.items
        seeds: Sequence[int | None] = task.seeds if task.seeds is not None else (None,) * len(items)
        additional: _Additional = None
        failures: list[Failure] = []
        loader, status, word, catch = self._loader_of(task), self._status, self._word, self._catch
        first = begun = self._begun
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
        self._begun = begun
        if task.decode and task.layout in self._decoders and not status[0]:
            failed = {failure.offset for failure in failures}
            loaded = [offset for offset in range(len(items)) if offset not in failed]
            for offset, error in self._decode(task, loaded).items():
                failure, result = self._retry(task, offset, views[offset], error)
                if failure is not None:
                    failures.append(failure)
                if additional is None and result:
                    additional = _nothing(len(items))
                if additional is not None:
                    additional[offset] = result or None
        return additional, failures

    def _retry(
        self, task: Task, offset: int, arrays: _ItemArrays, error: BaseException
    ) -> tuple[Failure | None, dict[str, Any] | None]:
        """Tries an item that could not be loaded or decoded again, from its loading on."""
        item, seed = task.items[offset], task.seeds[offset] if task.seeds is not None else None
        loader = self._loader_of(task)
        for attempt in range(self._retries):
            if not self._wait(self._backoff * 2**attempt):
                break
            try:
                result = loader(item, arrays, seed)
                if result and not isinstance(result, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise _not_a_dict(result)
                # Here already, so that what cannot be decoded is not tried more often than what cannot be loaded.
                if wrong := self._decode(task, [offset]):
                    raise wrong[offset]
                return None, result
            except self._catch as again:
                error = again
        failure = self._failure(offset, error)
        del error  # which refers to this frame
        return failure, None

    def _loader_of(self, task: Task) -> LoaderFunc:
        """The loader function, or, for items whose files are left to a device, what stands in for it."""
        if not task.encode:
            return self._loader
        files = self._file_views(task.slot, task.layout)
        encode = cast("EncodingLoader", self._loader).encode
        return lambda item, row, seed: encode(item, row, files[id(row)], seed)

    # One call for all of them.

    def _together(self, load: LoadRows, task: Task, views: Sequence[_ItemArrays]) -> tuple[_Additional, list[Failure]]:
        if self._status[0]:
            return None, []
        # All of them are begun at once: which one it is that hangs, or kills the process, nobody can tell.
        self._begun += len(task.items)
        self._status[self._word] = self._begun
        outcomes = self._load_and_decode(load, task, views, range(len(task.items)))
        failed = _failed(outcomes)
        for attempt in range(self._retries):
            if not failed or not self._wait(self._backoff * 2**attempt):
                break
            for offset, outcome in zip(failed, self._load_and_decode(load, task, views, failed), strict=True):
                outcomes[offset] = outcome
            failed = _failed(outcomes)
        additional = [outcome if isinstance(outcome, dict) else None for outcome in outcomes]
        failures = [self._failure(i, error) for i in failed if isinstance(error := outcomes[i], BaseException)]
        return additional if any(additional) else None, failures

    def _load_and_decode(
        self, load: LoadRows, task: Task, views: Sequence[_ItemArrays], offsets: Sequence[int]
    ) -> list[Outcome]:
        items, seeds = [task.items[i] for i in offsets], task.seeds
        outcomes = load_rows(
            load,
            items,
            [views[i] for i in offsets],
            [None if seeds is None else seeds[i] for i in offsets],
            self._catch,
        )
        loaded = [i for i, outcome in zip(offsets, outcomes, strict=True) if not isinstance(outcome, BaseException)]
        wrong = self._decode(task, loaded)
        return [wrong.get(i, outcome) for i, outcome in zip(offsets, outcomes, strict=True)]

    # Both.

    def _decode(self, task: Task, offsets: Sequence[int]) -> dict[int, BaseException]:
        """Decodes rows that were loaded, if their layout has anything to decode; what is wrong with which."""
        decoder = self._decoders.get(task.layout) if task.decode else None
        wrong: dict[int, BaseException] = {}
        if decoder is not None:
            start = time.perf_counter_ns()
            for begin, end in runs(offsets):
                for row, error in decoder(task.slot, task.row + begin, task.row + end).items():
                    wrong[row - task.row] = error
            self._decode_ns += time.perf_counter_ns() - start
        return wrong

    def _failure(self, offset: int, error: BaseException) -> Failure:
        tries = f" (tried {self._retries + 1} times)" if self._retries else ""
        return Failure(offset, describe(error) + tries, format_traceback(error), error if self._keep else None)

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

    def _file_views(self, slot: int, layout: int) -> dict[int, _ItemArrays]:
        """The regions for files of a slot's rows, by the identity of the rows' other views."""
        views = self._files.get((slot, layout))
        if views is None:
            files = self._layouts[layout].file_views(self._arena.slot(slot))
            views = dict(zip(map(id, self._item_views(slot, layout)), files, strict=True))
            self._files[slot, layout] = views
        return views


def _failed(outcomes: list[Outcome]) -> list[int]:
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]


def _nothing(count: int) -> list[dict[str, Any] | None]:
    return [None] * count


def describe(error: BaseException) -> str:
    """`ValueError: the text`, the way a traceback ends."""
    import traceback  # costs a worker's start some milliseconds, and most never need it

    return "".join(traceback.format_exception_only(error)).strip()


def format_traceback(error: BaseException) -> str:
    """The traceback as text, from the user's function on: our own frames above it are left out."""
    import traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, load_rows.__code__.co_filename):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _not_a_dict(result: object) -> TypeError:
    return TypeError(
        f"the loader function returned {type(result).__name__}, wanted a dict of additional data or None "
        "(arrays are filled in place, not returned)"
    )
