"""Who holds batches back: `debug_batch_references`."""

from __future__ import annotations

import gc
import logging
from types import FrameType
from typing import Any

from hydrax_gpu.loader import held, running_loaders

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
    for loader in running_loaders():
        for slot, name, thing in held(loader):
            lines.append(f"slot {slot}: {name} is held by")
            before = len(lines)
            _referrers(thing, lines, {id(thing), id(lines)}, 1)
            if len(lines) == before:
                lines.append("  nothing that Python can see: a running computation, or a view of its memory")
            del thing
    text = "\n".join(lines)
    if text:
        _log.warning("batches that are still referenced:\n%s", text)
    return text


def _referrers(target: Any, lines: list[str], seen: set[int], level: int) -> None:
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
            _referrers(referrer, lines, seen, level + 1)


def _describe(referrer: Any, target: Any) -> str:
    if isinstance(referrer, FrameType):
        names = [name for name, value in referrer.f_locals.items() if value is target]
        where = f"{referrer.f_code.co_qualname} ({referrer.f_code.co_filename}:{referrer.f_lineno})"
        return f"local variable {', '.join(names) or '(unnamed)'} of {where}"
    if isinstance(referrer, dict):
        keys = [key for key, value in referrer.items() if value is target]  # pyright: ignore[reportUnknownVariableType]
        module = referrer.get("__name__") if "__builtins__" in referrer else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return f"{f'global variable of {module}' if module else 'dict'}, key {keys}"
    if isinstance(referrer, list | tuple):
        index = [i for i, value in enumerate(referrer) if value is target]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return f"{type(referrer).__name__} of {len(referrer)}, index {index}"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return f"{type(referrer).__module__}.{type(referrer).__qualname__}"
