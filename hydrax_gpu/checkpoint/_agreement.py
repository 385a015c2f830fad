"""One state for all processes of a job, by exchanging what each of them has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._plan import merge_states
from hydrax_gpu.loader import Dataloader, State

__all__ = ["agreed_reading", "agreed_state", "exchange", "process_index", "state_of"]

_HEADER = 8 + 32  # length and SHA-256


def state_of(loader: object) -> State:
    """The state of a loader, or the state itself.

    Raises:
        TypeError, ValueError: it is neither a `Dataloader` nor what its `state()` returned.
    """
    if isinstance(loader, Dataloader):
        return cast("Dataloader[Any]", loader).state()
    if not isinstance(loader, Mapping):
        raise TypeError(f"got {loader!r}, wanted a hydrax_gpu.Dataloader, or what its state() returned")
    state = dict(cast("Mapping[str, Any]", loader))
    if "version" not in state or "fingerprint" not in state:
        raise ValueError(
            f"got a dict with {sorted(map(str, state))}, wanted what Dataloader.state() returned, with 'version' and "
            "'fingerprint' among its keys"
        )
    return state


def agreed_state(loader: Dataloader[Any] | Mapping[str, Any]) -> State:
    """The state of the job: that of this process's loader, compared with those of all others, and merged with them.

    Every process has to call it after the same batch; with one process there is nothing to exchange.

    Args:
        loader: a `Dataloader`, or what its `state()` returned.

    Returns:
        The same on all processes, and fit for `json.dump`: with the bad items that each of them has found.

    Raises:
        StatesDiffer: the processes are at different batches, or have other data; on all of them alike.
        TypeError, ValueError: it is neither a loader nor a state.
    """
    return _merged(exchange(_text(state_of(loader))))


def agreed_reading(read: Callable[[], State], where: str) -> State:
    """What every process of the job has read, if that is the same for all.

    Raises:
        OSError, ValueError: as `read` does; on the other processes, an OSError that says so.
        StatesDiffer: they have read different states.
    """
    try:
        text = _text(read())
    except (OSError, ValueError):
        exchange(b"")  # the others wait for what this one has read
        raise
    texts = exchange(text)
    if b"" in texts:
        raise OSError(f"process {texts.index(b'')} could not read {where}, which this one has read")
    return _merged(texts)


def _text(state: State) -> bytes:
    return json.dumps(state, sort_keys=True).encode()


def _merged(texts: list[bytes]) -> State:
    return merge_states([json.loads(text) for text in texts])


def exchange(mine: bytes) -> list[bytes]:
    """What every process of the job has passed, in their order. Where all pass the same, one small message is sent."""
    if _process_count() == 1:
        return [mine]
    header = len(mine).to_bytes(8, "little") + hashlib.sha256(mine).digest()
    headers = _gather(np.frombuffer(header, np.uint8))
    if (headers == headers[0]).all():
        return [mine] * len(headers)
    lengths = [int.from_bytes(row[:8].tobytes(), "little") for row in headers]
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    return [row[:length].tobytes() for row, length in zip(_gather(padded), lengths, strict=True)]


def _gather(row: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    from jax.experimental import multihost_utils

    return np.asarray(cast("Any", multihost_utils).process_allgather(row)).reshape(-1, len(row))


def _process_count() -> int:
    """Processes of the job. Where `jax.distributed` is not in use, jax is not made to look for devices."""
    return 1 if not _distributed() else _jax().process_count()


def process_index() -> int:
    """Number of this process in the job."""
    return 0 if not _distributed() else _jax().process_index()


def _distributed() -> bool:
    known = getattr(_jax().distributed, "is_initialized", None)
    return True if known is None else bool(known())


def _jax() -> Any:
    import jax

    return jax
