"""What an executor is given and what it answers.

An executor owns `count` workers, numbered from 0. The engine submits `Task`s to a worker of its choice and finds
`WorkerReady`, `Result` and `WorkerLost` in its inbox. An executor decides nothing: which worker, in which order and
what a failure means is the engine's business.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

from hydrax_gpu._spec import Layout

if TYPE_CHECKING:
    from hydrax_gpu._exec.rowstore import RowCacheSpec

__all__ = [
    "STACK_SIGNAL",
    "CacheCounts",
    "Executor",
    "Failure",
    "Inbox",
    "LoaderFunc",
    "Result",
    "RowsLoader",
    "StartupFunc",
    "Task",
    "Unreadable",
    "WorkSpec",
    "WorkerLost",
    "WorkerReady",
    "WorkerView",
]

STACK_SIGNAL = signal.SIGRTMIN + 7
"""Makes a worker process write its threads' Python stacks down, whatever it is doing. One that nobody else uses."""

LoaderFunc: TypeAlias = Callable[[Any, Any, "int | None"], "dict[str, Any] | None"]
StartupFunc: TypeAlias = Callable[[], object]


class RowsLoader(Protocol):
    """A loader that loads many items in one call, such as a library that decodes whole batches.

    An object with this method can be given to a `Dataloader` in place of a loader function; it need not be callable.
    Then each worker gets whole batches (or, when there are more workers than `depth - 1`, equal parts of batches large
    enough to keep all of them busy; and the first batches are cut among all workers). Everything else is as for a
    loader function: order, seeds, additional data, error policy, retries (with the failed rows only), reports.

    When a worker process dies in such a call, nobody can tell over which item. So its items are loaded again, each in a
    call of its own, and only one that kills its worker then, three times, is held to be bad.
    """

    def load_rows(
        self,
        items: Sequence[Any],
        arrays: Sequence[Mapping[str, npt.NDArray[Any]]],
        seeds: Sequence[int | None],
        /,
    ) -> Sequence[dict[str, Any] | BaseException | None] | None:
        """Loads `n` items, `n >= 1`, of one group, into rows of one batch.

        Args:
            items: `n` descriptors.
            arrays: for each item a mapping of writable NumPy views by name, as a loader function gets it, to be filled
                completely. It must not keep references to them.
            seeds: for each item its seed, or None for validation.

        Returns:
            None when all is well and there is nothing to tell; otherwise for each item a dict of additional data, None,
            or the exception that says why it could not be loaded: the others of the call stay good.

        Raises:
            Exception: something is wrong, and it is not known with which item. The items are loaded again, each in a
                call of its own, to find that out.
        """
        ...


class CacheCounts(NamedTuple):
    """What a worker has done with the cache of one layout since it last told.

    Attributes:
        layout: index of the layout.
        hits: rows read.
        misses: rows that were not there.
        bad: rows that were there, and whose records turned out to be damaged.
        written: rows written.
        present: rows that were not written, because another has.
        refused: rows that were not written, because their values cannot be kept in the form that is wanted.
        bytes_read: from the files.
        bytes_written: of arrays.
        trouble: why nothing is read, or written, any more; "" while all is well.
    """

    layout: int
    hits: int = 0
    misses: int = 0
    bad: int = 0
    written: int = 0
    present: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    trouble: str = ""
    refused: int = 0

    def plus(self, other: CacheCounts) -> CacheCounts:
        """The sum of both, which are of one layout."""
        return CacheCounts(
            self.layout,
            self.hits + other.hits,
            self.misses + other.misses,
            self.bad + other.bad,
            self.written + other.written,
            self.present + other.present,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.trouble or other.trouble,
            self.refused + other.refused,
        )


@dataclass(frozen=True, slots=True)
class WorkSpec:
    """What every worker needs to know once.

    Attributes:
        loader: the user's function, or what has `load_rows`.
        startup: called once in each worker before its first item.
        layouts: layout of each group's slots; a task names one by its index.
        nice: increment of the workers' niceness.
        retries: how often an item whose loading raised is tried again.
        backoff: seconds before the first retry; each further one waits twice as long.
        keep_exceptions: whether failures have the exception itself, and not only its text and traceback. In this
            process, it holds on to all frames that it went through, and through them to their callers', and so to
            batches: only for a run that ends with it.
        kernels: the host library's file, or None for NumPy to do the kernels' work.
        caches: the caches, by the index of their layout.
    """

    loader: LoaderFunc | RowsLoader
    startup: StartupFunc | None
    layouts: Sequence[Layout]
    nice: int = 0
    retries: int = 0
    backoff: float = 0.0
    keep_exceptions: bool = True
    kernels: str | None = None
    caches: Mapping[int, RowCacheSpec] = field(default_factory=dict[int, "RowCacheSpec"])


class Task(NamedTuple):
    """Rows `row .. row + len(items)` of a slot to fill. Plain and small: it is pickled once and sent to a process.

    `decode` tells whether declared arrays are to be decoded by the worker, and not later on a device. Where the layout
    has a cache, `keys` are the items' indices and the pass over their group. `encode` tells whether compressed files
    are to be left to a device (`_mem.encoded`).
    """

    chunk: int
    slot: int
    layout: int
    row: int
    items: list[Any]
    seeds: list[int] | None
    decode: bool = True
    keys: tuple[list[int], int] | None = None
    encode: bool = False


class Failure(NamedTuple):
    """An item that could not be loaded. `offset` counts from the task's first item."""

    offset: int
    error: str
    traceback: str
    exception: BaseException | None


class Result(NamedTuple):
    """A task is done: all of its items were tried.

    Attributes:
        busy_ns: time from the first item's beginning to the last one's end, in nanoseconds; -1 when it is not known.
        additional: for each item what the loader returned, or None when no item returned anything.
        counts: what `take_counts` of the loader function returned, if it has such a method: how often something did not
            go as it should, by lines of text for the report.
        unread: offsets of items that were to be read from a cache and could not be; the others were.
        caches: what was done with caches, in this task or before.
        end_ns: when the last item was done, on the clock of `time.perf_counter_ns`, which is one for all processes.
        decode_ns: how much of `busy_ns` went into decoding declared arrays.
    """

    worker: int
    chunk: int
    busy_ns: int
    additional: list[dict[str, Any] | None] | None
    failures: tuple[Failure, ...]
    counts: dict[str, int] | None = None
    unread: tuple[int, ...] = ()
    caches: CacheCounts | None = None
    end_ns: int = 0
    decode_ns: int = 0


class Unreadable(NamedTuple):
    """A task is done, but what its items returned cannot be read. It takes a task of one item to tell whose that is."""

    worker: int
    chunk: int
    failure: Failure


class WorkerReady(NamedTuple):
    """A worker has started and takes tasks.

    Attributes:
        start_ns: nanoseconds from its creation to its being ready.
        imported_jax: whether the user's loader made it import jax, which costs seconds and memory.
        thread: its native id, where it is a thread of this process.
    """

    worker: int
    pid: int
    start_ns: int
    imported_jax: bool
    thread: int = 0


class WorkerLost(NamedTuple):
    """A worker could not start (`error` says why) or ended by itself (`exitcode`, None when unknown).

    `begun` is the number of items that it had begun in its life. The last of them is the one that it was at, if it had
    not finished that. `traceback` is of what kept it from starting, or its Python stack when it crashed.
    """

    worker: int
    pid: int
    exitcode: int | None
    error: str | None
    traceback: str
    exception: BaseException | None
    begun: int = 0


Message: TypeAlias = Result | Unreadable | WorkerReady | WorkerLost


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as it is seen from outside, for messages about one that hangs.

    Attributes:
        worker: its number.
        name: what to call it, such as "process 4711".
        state: what the operating system says of it, such as "stopped by a signal"; "" when there is nothing to say.
        begun: number of items that it has begun in its life.
        since_ns: when it took up the task it is at, on the clock of `time.perf_counter_ns`.
        stack: its Python stack, innermost call first; "" when it could not be had.
    """

    worker: int
    name: str
    state: str
    begun: int
    since_ns: int
    stack: str


class Inbox(Protocol):
    """Where an executor puts its messages; the engine's end of it is elsewhere."""

    def post(self, message: Any, /) -> None:
        """Adds a message; from any thread, without blocking."""
        ...

    def register(self, fd: int, ready: Callable[[int], None], *, write: bool = False) -> None:
        """Calls `ready(events)` on the engine's thread whenever `fd` is readable (or writable). Again to change."""
        ...

    def unregister(self, fd: int) -> None:
        """Forgets `fd`."""
        ...


class Executor(Protocol):
    """The engine's view of its workers."""

    @property
    def count(self) -> int:
        """Number of workers."""
        ...

    def start(self) -> None:
        """Begins to start workers, which report by `WorkerReady`.

        On the engine's thread only: the kernel ends worker processes with the thread that started them.
        """
        ...

    def start_more(self) -> None:
        """Starts workers that have to wait until others are ready. As `start`, on the engine's thread only."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether there are workers that `start_more` has yet to start."""
        ...

    def submit(self, worker: int, task: Task) -> None:
        """Queues a task at a worker; never blocks. Tasks of one worker run in the order of submission."""
        ...

    def flush(self) -> None:
        """Lets go of what is queued: tasks may wait for this."""
        ...

    def respawn(self, worker: int) -> None:
        """Lets another take the place of a worker that was lost, as soon as `start_more` comes by."""
        ...

    def inspect(self) -> list[WorkerView]:
        """Looks at the workers; may take a second. From any thread."""
        ...

    def abandon(self) -> None:
        """Forgets the workers, in a fork of the process that they belong to."""
        ...

    def look(self) -> None:
        """Looks whether workers have done tasks that they could not report, being at a slow one since then."""
        ...

    def run_one(self) -> bool:
        """Runs one queued task on the calling thread; False when this executor has workers of its own for that."""
        ...

    def close(self) -> None:
        """Ends all workers after the item that each is at, and waits for them, though not for ever. Idempotent."""
        ...
