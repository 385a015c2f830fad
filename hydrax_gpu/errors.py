"""Every error of its own that `hydrax_gpu` raises, each a state of the contract.

A message says what was got, what was wanted and what to do. Plain misuse (a wrong argument, a call out of order) is a
`ValueError`, `TypeError` or `RuntimeError` raised where the mistake is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu.policy import BadItems

__all__ = [
    "BatchTimeoutError",
    "CacheDamaged",
    "CacheError",
    "CacheMismatch",
    "CacheWriteError",
    "DecodeError",
    "ImageError",
    "LoaderError",
    "NotEnoughMemory",
    "PlacementError",
    "SourceChanged",
    "SourceError",
    "StateMismatch",
    "StatesDiffer",
    "TooManyBadItems",
    "UnsafeCache",
    "WorkerDied",
    "WorkerStartError",
]


class _Portable:
    """Can be sent to another process: exceptions are made anew from their message alone unless they say how."""

    args: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, vars(self))


def _rebuild(kind: type[_Portable], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> _Portable:
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(attributes)
    return error


class BatchTimeoutError(_Portable, TimeoutError):
    """No batch has been produced for `timeout_sec` seconds. The next call of `next()` waits for one again.

    The message says what the loader was waiting for: the item that each worker is at and since when, the Python stack
    of each worker, the state of every slot, and, where batches that are still referenced hold all slots, what refers to
    them.

    Attributes:
        items: indices of the items in work, one for each worker that is at one; all that a worker loads in one call.
        stacks: for each worker, by its number, its Python stack as text; "" where none could be had.
    """

    def __init__(self, message: str, items: Sequence[int] = (), stacks: Mapping[int, str] | None = None) -> None:
        self.items: tuple[int, ...] = tuple(items)
        self.stacks: dict[int, str] = dict(stacks or {})
        super().__init__(message)


class CacheError(_Portable, RuntimeError):
    """A cache cannot be used: it is not there, damaged beyond single entries, or a package that it needs is missing."""


class CacheMismatch(CacheError, ValueError):
    """A cache on disk is of other data, arrays or order than what it was opened for.

    Attributes:
        field: what differs, such as `arrays[0].nbytes`.
        stored: its value on disk.
        wanted: its value here.
        fix: what to do about it.
    """

    def __init__(self, location: str, field: str, stored: object, wanted: object, fix: str) -> None:
        self.location = location
        self.field = field
        self.stored = stored
        self.wanted = wanted
        self.fix = fix
        super().__init__(
            f"the cache in {location} does not fit: its {field} is {stored!r}, and {wanted!r} is wanted here. {fix}"
        )


class CacheDamaged(CacheError):
    """Entries of a cache that all processes of a job had agreed to read turned out to be damaged, or gone.

    Only where other processes have the same rows: they may have read them, or not, and nothing else can take their
    place on one of them alone.

    Attributes:
        location: directory of the cache.
        group: whose cache it is, such as "training group 0".
        items: indices of the items that could not be read.
    """

    def __init__(self, location: str, group: str, items: Sequence[int]) -> None:
        self.location = location
        self.group = group
        self.items: list[int] = list(items)
        shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
        super().__init__(
            f"the entries of items {shown} in the cache of {group}, {location}, are damaged or gone, and all processes "
            "had agreed to read them. Other processes have the same rows, so that this one cannot replace them alone. "
            f"Run `hydrax-gpu cache repair {location}`, which takes out what is damaged, and start the job again from "
            "its last state."
        )


class CacheWriteError(CacheError):
    """Nothing more can be written to a cache: the disk is full, the file system read-only, a permission lost.

    What was written stays good, and reading goes on. The `__cause__` is the `OSError`.

    Attributes:
        errno: its number, None where there is none.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        self.errno = errno
        super().__init__(message)


class UnsafeCache(CacheError):
    """Pickled values were found in a file that somebody else may have written; they were not unpickled."""


class DecodeError(_Portable, ValueError):
    """What the loader function wrote into an array with a decode cannot be decoded: row splits that are not sound.

    A bad item, like one whose loader function raised; the message names the array.
    """


class ImageError(_Portable, ValueError):
    """A picture could not be read, and its row was not written: an item error, with which the error policy deals.

    Attributes:
        source: path of the file, or what else the picture came from, such as `120 bytes in memory`.
        reason: what is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class SourceError(_Portable, ValueError):
    """An item of a source could not be read: an item error, with which the error policy deals.

    Raised outside of a worker, it says the same of a file that a source is made of.

    Attributes:
        source: path of the file, and what of it, such as `train-003.tar: n0153/17.jpg`.
        reason: what is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class SourceChanged(SourceError):
    """A file is not any more what it was when the source was made: nothing of it is read at places that may be wrong.

    Make the source anew; an index that was kept beside the file is made anew with it.
    """


class LoaderError(_Portable, RuntimeError):
    """The loader function raised for an item.

    The original exception, when it could be sent to the main process, is the `__cause__`.

    Attributes:
        item_index: index of the item in its `DataGroup`.
        group_index: index of the group among the training (or validation) groups.
        seed: the seed that the loader function was called with, `None` for validation.
        epoch: pass over the group in which the item failed.
        worker_traceback: the traceback as the worker printed it, with the user's function and line; empty when the
            worker died.
    """

    def __init__(
        self,
        *,
        item_index: int,
        group_index: int,
        validation: bool,
        seed: int | None,
        epoch: int,
        error: str,
        worker_traceback: str,
    ) -> None:
        self.item_index = item_index
        self.group_index = group_index
        self.validation = validation
        self.seed = seed
        self.epoch = epoch
        self.worker_traceback = worker_traceback
        kind = "validation" if validation else "training"
        trace = f"\n\nTraceback of the worker:\n{worker_traceback}" if worker_traceback else ""
        super().__init__(
            f"item {item_index} of {kind} group {group_index} (epoch {epoch}, seed {seed}) could not be loaded: "
            f"{error}.{_hint(error)}{trace}"
        )


class TooManyBadItems(_Portable, RuntimeError):
    """More items were bad than the `ErrorPolicy` allows, or nothing was left of the data.

    Attributes:
        bad: the bad items so far; `bad.save(path)` writes them to a file that `ErrorPolicy(skip=path)` takes.
    """

    def __init__(self, reason: str, bad: BadItems) -> None:
        self.bad = bad
        lines = [f"{reason} Bad items so far: {len(bad)}."]
        for item in bad[:8]:
            kind = "validation" if item.validation else "training"
            what = f"item {item.item} of {kind} group {item.group} (epoch {item.epoch})"
            lines.append(f"  {what}: {item.error or 'known from a skip list'}")
        if len(bad) > 8:
            lines.append(f"  and {len(bad) - 8} more")
        if bad:
            lines[-1] += _hint(bad[0].error)
        if first := next((item.traceback for item in bad if item.traceback), ""):
            lines.append(f"\nTraceback of the first:\n{first}")
        super().__init__("\n".join(lines))


class NotEnoughMemory(_Portable, MemoryError):
    """The slots of a loader need more memory than there is; nothing was taken.

    Attributes:
        needed: bytes that the slots need.
        free: bytes that there are.
        limit: what it is that there are no more of, such as `memory limit of the cgroup /job (memory.max)`.
    """

    def __init__(self, what: str, needed: int, free: int, limit: str, advice: str) -> None:
        self.needed = needed
        self.free = free
        self.limit = limit
        super().__init__(
            f"{what} need {needed:,} bytes, but the {limit} leaves {free:,}. Lower depth or batch_size, make the "
            f"arrays smaller, or {advice}."
        )


class WorkerStartError(RuntimeError):
    """A worker could not be started, could not unpickle the loader function, or `startup_func` raised in it."""


class WorkerDied(_Portable, RuntimeError):
    """A worker process ended without being asked to.

    Attributes:
        pid: process id of the worker.
        exitcode: its exit status; negative for the signal that ended it, `None` when unknown.
        items: indices of the items it had been given and not finished.
        how: how it ended, in words.
        stack: the Python stacks of its threads when it crashed, as text; "" when it was killed.
    """

    def __init__(
        self, pid: int, exitcode: int | None, items: list[int], stack: str = "", deaths: int | None = None
    ) -> None:
        self.stack = stack
        self.pid = pid
        self.exitcode = exitcode
        self.items = items
        shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
        if exitcode is None:
            how = "ended for an unknown reason"
        elif exitcode < 0:
            how = f"was ended by signal {-exitcode} ({_signal_name(-exitcode)})"
        else:
            how = f"exited with status {exitcode}"
        self.how = how
        what = f"while it held items [{shown}]" if items else "while it held no items"
        advice = {
            9: " Signal 9 is what the kernel sends when memory runs out: see dmesg, lower loader_count or depth.",
            11: " A native library that the loader function calls has crashed; executor='inline' shows where.",
            7: " A bus error: a file that the loader function maps was truncated, or shared memory ran out.",
        }.get(-exitcode if exitcode is not None else 0, "")
        count = ""
        if deaths is not None:
            count = f" {deaths} deaths are more than the ErrorPolicy allows (restarts)."
        where = f"\n\n{stack}" if stack else ""
        super().__init__(f"loader process {pid} {how} {what}.{count}{advice}{where}")


class PlacementError(RuntimeError):
    """A batch could not be handed to JAX, or `placement_func` raised or returned something unfit; see `__cause__`."""


class StateMismatch(_Portable, ValueError):
    """A saved state belongs to another order of the data than this loader's.

    Attributes:
        field: the field that differs, such as `training[0].batch_size`.
        saved: its value in the state.
        current: its value in this loader.
    """

    def __init__(self, field: str, saved: object, current: object) -> None:
        self.field = field
        self.saved = saved
        self.current = current
        super().__init__(
            f"the saved state does not fit this loader: {field} was {saved!r} in it and is {current!r} now. "
            f"Resume with the same {field.rsplit('.', 1)[-1]}, or start anew without the state."
        )


class StatesDiffer(_Portable, ValueError):
    """The processes of a job are not at the same place of the same data, so that no one state is that of the job.

    Attributes:
        field: the first field of the state that differs, such as `batch`.
        first: its value on process 0.
        other: its value on the process that differs.
        process: the index of that process.
    """

    def __init__(self, field: str, first: object, other: object, process: int) -> None:
        self.field = field
        self.first = first
        self.other = other
        self.process = process
        if "fingerprint" in field:
            advice = "All processes of a job need the same groups: the same data, batch sizes, seeds and options."
        else:
            advice = (
                "All processes of a job must take the same batches and save after the same one. Look for a loop that "
                "ends at another step on one of them, and save the states of loaders that have nothing to do with "
                "each other one by one, each under its own name."
            )
        super().__init__(
            f"the processes' states differ: {field} is {first!r} on process 0 and {other!r} on process {process}. "
            f"{advice}"
        )


def _hint(error: str) -> str:
    # numpy.random.seed and RandomState are the one common consumer that our 63-bit seeds do not fit.
    if "between 0 and 2**32" not in error:
        return ""
    return (
        "\nSeeds have 63 bits. Use numpy.random.default_rng(seed), or for the legacy generators "
        "numpy.random.RandomState(seed % 2**32)."
    )


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
