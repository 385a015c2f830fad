"""The interpreter's end, while XLA still reads slots.

When the last reader of an exported slot is a computation, NumPy's DLPack deleter runs on a thread of XLA's and asks for
the GIL. An interpreter that is shutting down does not give it, but ends the thread that asks; XLA's threads cannot be
ended like that, and the process aborts. NumPy's deleter looks whether the interpreter is still there, but that does not
help it in the time in between.

So, as the very last thing before that time, nothing may be left that could end later on a thread of XLA's:

- a slot that only computations hold is waited for, until they are done;
- a slot that Python objects hold as well is never given back: its arrays are made immortal, and the kernel takes them.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any, cast

__all__ = ["arm", "held_by", "watch"]

_PATIENCE_SECONDS = 10.0

_FINALIZE: CodeType = cast("Any", weakref.finalize).__call__.__code__
"""The bottom of the Python frames of a thread that releases a lease."""

_log = logging.getLogger("hydrax_gpu")

_tokens = itertools.count()
_outstanding: dict[int, tuple[weakref.ref[Any], ...]] = {}
"""For every lease of a slot that JAX was given and is not done with, the arrays that share its memory."""

_spans: dict[int, range] = {}
"""The addresses of those leases of which JAX makes further arrays by itself: the shards of one over several devices."""

# A fork has none of XLA's threads, so nothing that it could wait for would ever end.
os.register_at_fork(after_in_child=_outstanding.clear)
os.register_at_fork(after_in_child=_spans.clear)


@cache
def arm() -> None:
    """Registers `settle` for the interpreter's end; after jax was imported, so that it comes before what jax does."""
    atexit.register(settle)


def watch(on_release: Callable[[], None]) -> tuple[int, Callable[[], None]]:
    """Notes a lease, and returns its token and what the lease is to call in place of `on_release`."""
    token = next(_tokens)
    _outstanding[token] = ()
    return token, partial(_released, token, on_release)


def held_by(token: int, arrays: Iterable[Any], span: range | None = None) -> None:
    """Notes the arrays that share the leased memory. They are alive, so the lease is.

    Args:
        token: of the lease.
        arrays: what shares it, as far as is known.
        span: its addresses, if there can be arrays of it that are not known.
    """
    if span is not None:
        _spans[token] = span
    _outstanding[token] = tuple(map(weakref.ref, arrays))


def _released(token: int, on_release: Callable[[], None]) -> None:
    _outstanding.pop(token, None)
    _spans.pop(token, None)
    on_release()


def settle() -> None:
    """Waits for computations and makes arrays immortal, see above."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for token in list(_outstanding):
        while (arrays := _outstanding.get(token)) is not None:
            alive = [array for reference in arrays if (array := reference()) is not None]
            if not alive and (span := _spans.get(token)) is not None:
                alive = _within(span)
            if alive:
                for array in alive:
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))
                break
            if not _wait(deadline):
                return
    # A deleter that has begun must also get to its end, for which it may need the GIL once more. It gives it up in
    # Python code only, and there its frames can be seen.
    while any(map(_releasing, sys._current_frames().values())):  # pyright: ignore[reportPrivateUsage]
        if not _wait(deadline):
            return


def _within(span: range) -> list[Any]:
    """The arrays of which a part begins in a span of addresses; among them those that the user has got from JAX.

    Ours are ready. To ask one that is not would wait for it with the GIL, for which its computation may wait.
    """
    jax: Any = sys.modules["jax"]
    return [
        array
        for array in jax.live_arrays()
        if not array.is_deleted()
        and array.is_ready()
        and any(shard.data.unsafe_buffer_pointer() in span for shard in array.addressable_shards)
    ]


def _wait(deadline: float) -> bool:
    if time.monotonic() > deadline:
        _log.warning("a computation still reads a batch %g s after the end; not waiting", _PATIENCE_SECONDS)
        return False
    time.sleep(0.001)  # without the GIL, which the deleter needs
    return True


def _releasing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _FINALIZE:
            return True
        frame = frame.f_back
    return False
