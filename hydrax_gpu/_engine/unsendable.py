"""What is wrong with items that could not be sent to a worker."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from hydrax_gpu._exec.chunk import describe, format_traceback
from hydrax_gpu._exec.protocol import Failure

__all__ = ["unsendable"]


def unsendable(data: Sequence[Any], indices: Sequence[int], error: Exception) -> tuple[Failure, ...]:
    """What is wrong with which items of a chunk that could not be sent because of `error`; never nothing."""
    failures: list[Failure] = []
    for offset, index in enumerate(indices):
        try:
            item = data[index]
        except Exception as own:
            failures.append(Failure(offset, f"{describe(own)} (from its descriptor)", format_traceback(own), own))
            continue
        try:
            pickle.dumps(item, protocol=5)
        except Exception as own:
            text = f"{describe(own)} (its descriptor could not be sent to a worker)"
            failures.append(Failure(offset, text, format_traceback(own), own))
    if failures:
        return tuple(failures)
    text = f"{describe(error)} (the descriptors of its chunk could not be sent to a worker)"
    trace = format_traceback(error)
    return tuple(Failure(offset, text, trace, error) for offset in range(len(indices)))
