"""What the processes of a job tell each other outside of jax's arrays."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

__all__ = ["RuntimeStore", "next_name"]

_numbers = itertools.count()


def next_name(kind: str) -> str:
    """A name for something of which all processes make as many, in the same order."""
    return f"hydrax_gpu/{kind}/{next(_numbers)}"


class RuntimeStore:
    """The key-value store of jax's distributed runtime (`jax.distributed.initialize`), which process 0 has in memory.

    It can be used from any thread, since no device is involved. jax offers no other way to it than this one, which its
    own checkpoints take.

    Raises:
        RuntimeError: jax has none, since it was not initialised, or has another interface than was known.
    """

    def __init__(self) -> None:
        client: Any = None
        try:
            runtime: Any = importlib.import_module("jax._src.distributed")
            client = runtime.global_state.client
        except (ImportError, AttributeError):
            pass
        wanted = "key_value_set_bytes", "blocking_key_value_get_bytes", "key_value_delete"
        if client is None or not all(hasattr(client, name) for name in wanted):
            raise RuntimeError(
                "groups with cache_arrays and a sharding over several processes need the key-value store of jax's "
                "runtime, by which the processes agree on what is in the cache, and it was not found. Call "
                "jax.distributed.initialize() first; if that was done, this version of jax is not supported"
            )
        self._client: Any = client

    def put(self, key: str, value: bytes) -> None:
        """Sets a value that was not set yet.

        Raises:
            Exception: jax's, when the runtime cannot be reached.
        """
        self._client.key_value_set_bytes(key, value)

    def get(self, key: str, seconds: float) -> bytes | None:
        """The value of a key, which is waited for; None if there is none after so many seconds.

        Raises:
            Exception: jax's, when the runtime cannot be reached.
        """
        try:
            return bytes(self._client.blocking_key_value_get_bytes(key, int(seconds * 1000)))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
                return None
            raise

    def delete(self, prefix: str) -> None:
        """Forgets all keys below a prefix, which ends with a slash.

        Raises:
            Exception: jax's, when the runtime cannot be reached.
        """
        self._client.key_value_delete(prefix)
