"""Names for what is done, in the profiles that somebody may be taking."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from hydrax_gpu._place import jaxio
from hydrax_gpu._ranges import named, ranged, ranges

__all__ = ["annotated", "profiled"]

R = TypeVar("R")


@cache
def _annotation() -> tuple[Any, Callable[[], bool]]:
    annotation = jaxio.jax().profiler.TraceAnnotation
    # Of an older jaxlib it cannot be asked; making one is cheap enough then.
    return annotation, getattr(annotation, "is_enabled", lambda: True)


def profiled() -> Callable[[], bool]:
    """A function that says whether a profile may be being taken, so that things had better be `annotated`."""
    enabled = _annotation()[1]
    return enabled if ranges() is None else lambda: True


def annotated(name: str, function: Callable[[], R]) -> R:
    """Calls a function; in a profile that `jax.profiler` or an NVTX tool takes, under that name."""
    annotation, enabled = _annotation()
    if not enabled():
        return function() if ranges() is None else ranged(name, function)()
    with named(name), annotation(name):
        return function()
