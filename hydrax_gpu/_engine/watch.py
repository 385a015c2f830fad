"""Looking at a loader that does not get on: what it waits for, and who holds its slots."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import time
from types import FrameType
from typing import Any

from hydrax_gpu._engine.messages import name_items
from hydrax_gpu._engine.runner import Runner
from hydrax_gpu._exec.protocol import WorkerView
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.errors import BatchTimeoutError

__all__ = ["describe_holders", "holders", "stuck_engine", "timed_out"]

_DEPTH = 3
_WIDTH = 4


def timed_out(runner: Runner, seconds: float) -> BatchTimeoutError:
    """What there is to say after a wait of so many seconds for a batch. The caller holds the runner's lock."""
    core = runner.core
    lines = [f"no batch has been produced for {seconds:g} seconds (timeout_sec)."]
    if core.starved:
        lines.append(
            "All slots are lent: batches, or arrays of batches, that are still referenced hold them. Drop them "
            "(`del batch` at the end of the loop's body), raise depth, or use delivery='copy'."
        )
        if held := holders(runner):
            lines.append(held)
    if core.waits_for_copies:
        lines.append(
            f"{core.copying} slots wait to be copied to the device, which comes after the computations that were given "
            "to it before and read the batches that were there. If none of them ends, the device hangs."
        )
    items: list[int] = []
    stacks: dict[int, str] = {}
    views = runner.executor.inspect()
    for view in views:
        at = core.crew.in_work(view.worker, view.begun)
        if at is not None:
            items += at[1]
        given = core.crew.given_to(view.worker)
        if given != [] or view.state:
            lines.append(_describe_worker(view, at, given))
            stacks[view.worker] = view.stack
            lines.append(view.stack or "  (its stack could not be had)")
    if not lines[1:]:
        lines.append(f"No item is in work; {len(views)} workers wait for some.")
    lines.append(f"Slots: {core.slots.describe()}.")
    return BatchTimeoutError("\n".join(lines), items, stacks)


def _describe_worker(
    view: WorkerView, at: tuple[BatchPlan, list[int], int, int] | None, given: list[int] | None
) -> str:
    name = f"Worker {view.worker} ({view.name}{', ' + view.state if view.state else ''})"
    if given is None:
        return f"{name} is starting:"
    if at is None:
        if not given:
            return f"{name} has nothing to do:"
        return f"{name} has not begun with item {given[0]}, the first of {len(given)} that it was given:"
    plan, items, number, count = at
    since = (time.perf_counter_ns() - view.since_ns) / 1e9
    kind = "validation" if plan.validation else "training"
    which = f"number {number} of {count} that" if len(items) == 1 else "which"
    return f"{name} is at {name_items(items)} of {kind} group {plan.group}, {which} it took up {since:.1f} seconds ago:"


def stuck_engine(seconds: float) -> BatchTimeoutError:
    """The same when the loader's own thread does not come back, so that nothing else can be asked."""
    # Imported here: it belongs to the executors, and nobody but this message needs it.
    from hydrax_gpu._exec.threads import stack_of

    threads = [thread for thread in threading.enumerate() if thread.name == "hydrax_gpu-engine"]
    stacks = "\n\n".join(filter(None, map(stack_of, threads)))
    return BatchTimeoutError(
        f"no batch has been produced for {seconds:g} seconds (timeout_sec): the loader's own thread has not come back "
        "from placing a batch. If placement_func is in the stack below, that is what hangs; otherwise it is JAX.\n"
        f"{stacks}"
    )


def holders(runner: Runner) -> str:
    """What keeps the batches and arrays of a runner that still exist, as text; "" when there are none."""
    return describe_holders(runner.held())


def describe_holders(things: list[tuple[int, str, Any]]) -> str:
    """What refers to some batches and arrays, a few levels up; empties the list, which refers to them itself.

    Args:
        things: `(slot, what, object)` each.
    """
    lines: list[str] = []
    variables = _variables()
    while things:
        slot, name, thing = things.pop(0)  # no tuple and no list of ours refers to it while we look
        lines.append(f"slot {slot}: {name} is held by")
        before = len(lines)
        _referrers(thing, variables, lines, {id(thing), id(lines)}, 1)
        if len(lines) == before:
            lines.append("  nothing that Python can see: a running computation, or a view of its memory")
        del thing
    return "\n".join(lines)


def _variables() -> dict[int, list[str]]:
    """The local variables of all functions that are running, by the id of what they refer to.

    The garbage collector knows the variables of functions that wait or have ended in an error, but not of running ones.
    """
    found: dict[int, list[str]] = {}
    frames = list(sys._current_frames().values())  # pyright: ignore[reportPrivateUsage]
    # This function's own frame is among them. A reference to it from here would be a cycle, which kept the frames of
    # all callers, and the batches in them, until the garbage collector comes by. So none is left.
    while frames:
        frame: FrameType | None = frames.pop()
        while frame is not None:
            if frame.f_code.co_flags & inspect.CO_OPTIMIZED and frame.f_code.co_filename != __file__:
                values = frame.f_locals
                for name, value in values.items():
                    found.setdefault(id(value), []).append(_variable(name, frame))
                    del value
                if sys.version_info < (3, 13) and sys.getrefcount(values) == 3:
                    # A copy that the frame keeps until it ends: it would hold every batch that is in it. A larger
                    # count means that the function has asked for its `locals()` itself.
                    values.clear()
                del values
            frame = frame.f_back
    return found


def _variable(names: str, frame: FrameType) -> str:
    return f"local variable {names} of {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _referrers(target: Any, variables: dict[int, list[str]], lines: list[str], seen: set[int], level: int) -> None:
    lines.extend("  " * level + variable for variable in variables.get(id(target), ()))
    referrers = gc.get_referrers(target)
    seen.add(id(referrers))
    shown = 0
    while referrers:
        referrer = referrers.pop(0)  # frames of ours may be among them: no cycle is to be left, see above
        if id(referrer) in seen or (isinstance(referrer, FrameType) and referrer.f_code.co_filename == __file__):
            continue
        if shown == _WIDTH:
            lines.append("  " * level + "and more")
            referrers.clear()
            return
        shown += 1
        seen.add(id(referrer))
        lines.append("  " * level + _describe(referrer, target))
        if level < _DEPTH and not isinstance(referrer, FrameType):
            _referrers(referrer, variables, lines, seen, level + 1)
    referrer = None


def _describe(referrer: Any, target: Any) -> str:
    if isinstance(referrer, FrameType):
        names = [name for name, value in referrer.f_locals.items() if value is target]
        return _variable(", ".join(names) or "(unnamed)", referrer)
    if isinstance(referrer, dict):
        keys = [key for key, value in referrer.items() if value is target]  # pyright: ignore[reportUnknownVariableType]
        module = referrer.get("__name__") if "__builtins__" in referrer else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return f"{f'global variable of {module}' if module else 'dict'}, key {keys}"
    if isinstance(referrer, list | tuple):
        index = [i for i, value in enumerate(referrer) if value is target]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return f"{type(referrer).__name__} of {len(referrer)}, index {index}"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return f"{type(referrer).__module__}.{type(referrer).__qualname__}"
