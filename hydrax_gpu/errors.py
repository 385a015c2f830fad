"""Every error of its own that `hydrax_gpu` raises, each a state of the contract.

A message says what was got, what was wanted and what to do. Plain misuse (a wrong argument, a call out of order) is a
`ValueError`, `TypeError` or `RuntimeError` raised where the mistake is made.
"""

from __future__ import annotations

__all__ = [
    "BatchTimeoutError",
    "LoaderError",
    "PlacementError",
    "StateMismatch",
    "WorkerDied",
    "WorkerStartError",
]


class BatchTimeoutError(TimeoutError):
    """No batch has been produced for `timeout_sec` seconds.

    The message lists what the loader was waiting for: items in work and since when, and the state of every slot.
    """


class LoaderError(RuntimeError):
    """The loader function raised for an item.

    The original exception, when it could be sent to the main process, is the `__cause__`.

    Attributes:
        item_index: index of the item in its `DataGroup`.
        group_index: index of the group among the training (or validation) groups.
        seed: the seed that the loader function was called with, `None` for validation.
        epoch: pass over the group in which the item failed.
        worker_traceback: the traceback as the worker printed it, with the user's function and line.
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
        hint = ""
        if "between 0 and 2**32" in error:
            # numpy.random.seed and RandomState are the one common consumer that our 63-bit seeds do not fit.
            hint = (
                "\nSeeds have 63 bits. Use numpy.random.default_rng(seed), or for the legacy generators "
                "numpy.random.RandomState(seed % 2**32)."
            )
        super().__init__(
            f"the loader function raised {error} for item {item_index} of {kind} group {group_index} "
            f"(epoch {epoch}, seed {seed}).{hint}\n\nTraceback of the worker:\n{worker_traceback}"
        )


class WorkerStartError(RuntimeError):
    """A worker could not be started, could not unpickle the loader function, or `startup_func` raised in it."""


class WorkerDied(RuntimeError):
    """A worker process ended without being asked to.

    Attributes:
        pid: process id of the worker.
        exitcode: its exit status; negative for the signal that ended it, `None` when unknown.
        items: indices of the items it had been given and not finished.
    """

    def __init__(self, pid: int, exitcode: int | None, items: list[int]) -> None:
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
        what = f"while it held items [{shown}]" if items else "while it held no items"
        advice = {
            9: " Signal 9 is what the kernel sends when memory runs out: see dmesg, lower loader_count or depth.",
            11: " A native library that the loader function calls has crashed; executor='inline' shows where.",
            7: " A bus error: a file that the loader function maps was truncated, or shared memory ran out.",
        }.get(-exitcode if exitcode is not None else 0, "")
        super().__init__(f"loader process {pid} {how} {what}.{advice}")


class PlacementError(RuntimeError):
    """A batch could not be handed to JAX, or `placement_func` raised or returned something unfit; see `__cause__`."""


class StateMismatch(ValueError):
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


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
