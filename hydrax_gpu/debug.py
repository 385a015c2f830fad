"""Who holds batches back: `debug_batch_references`."""

from __future__ import annotations

import gc
import inspect
import logging
import sys
from types import FrameType
from typing import Any

from hydrax_gpu._engine import running_streams

__all__ = ["debug_batch_references"]

_log = logging.getLogger("hydrax_gpu")

_DEPTH = 3
_WIDTH = 4


def debug_batch_references() -> str:
    """Finds out which objects keep batch memory from being reused.

    For every batch of every running loader that shares a slot's memory and is alive: the batch, its arrays, and what
    refers to them, with the names of local variables, attributes, keys and positions, a few levels up. References held
    by JAX's own running computations, and views made by NumPy, cannot be traced and are not listed.

    Returns:
        The tree as text, which is also logged as a warning; an empty string when no batch is held.
    """
    lines: list[str] = []
    variables = _variables()
    for stream in running_streams():
        things = stream.runner.held()
        while things:
            slot, name, thing = things.pop(0)  # no tuple and no list of ours refers to it while we look
            lines.append(f"slot {slot}: {name} is held by")
            before = len(lines)
            _referrers(thing, variables, lines, {id(thing), id(lines)}, 1)
            if len(lines) == before:
                lines.append("  nothing that Python can see: a running computation, or a view of its memory")
            del thing
    text = "\n".join(lines)
    if text:
        _log.warning("batches that are still referenced:\n%s", text)
    return text


def _variables() -> dict[int, list[str]]:
    """The local variables of all functions that are running, by the id of what they refer to.

    The garbage collector knows the variables of functions that wait or have ended in an error, but not of running ones.
    """
    found: dict[int, list[str]] = {}
    for top in sys._current_frames().values():  # pyright: ignore[reportPrivateUsage]
        frame: FrameType | None = top
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
    for referrer in referrers:
        if id(referrer) in seen or (isinstance(referrer, FrameType) and referrer.f_code.co_filename == __file__):
            continue
        if shown == _WIDTH:
            lines.append("  " * level + "and more")
            return
        shown += 1
        seen.add(id(referrer))
        lines.append("  " * level + _describe(referrer, target))
        if level < _DEPTH and not isinstance(referrer, FrameType):
            _referrers(referrer, variables, lines, seen, level + 1)


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
