"""Who holds batches back: `debug_batch_references`."""

from __future__ import annotations

import logging

from hydrax_gpu._engine import holders, running_streams

__all__ = ["debug_batch_references"]

_log = logging.getLogger("hydrax_gpu")


def debug_batch_references() -> str:
    """Finds out which objects keep batch memory from being reused.

    For every batch of every running loader that shares a slot's memory and is alive: the batch, its arrays, and what
    refers to them, with the names of local variables, attributes, keys and positions, a few levels up. References held
    by JAX's own running computations, and views made by NumPy, cannot be traced and are not listed.

    Returns:
        The tree as text, which is also logged as a warning; an empty string when no batch is held.
    """
    text = "\n".join(filter(None, (holders(stream.runner) for stream in running_streams())))
    if text:
        _log.warning("batches that are still referenced:\n%s", text)
    return text
