"""What we ask of JAX, in one place, imported only when a loader starts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from hydrax_gpu._place import settle

__all__ = ["canonical", "chosen_device", "collect", "copier", "jax", "prepare", "resolve"]


@cache
def jax() -> Any:
    """The jax module, imported when first asked for. Untyped: jax's own types are unknown to pyright in many places."""
    import jax

    return jax


def prepare() -> None:
    """Imports jax and starts its backend, in the caller's thread, while workers start in theirs."""
    resolve(chosen_device())
    settle.arm()


def chosen_device() -> Any:
    """What `jax_default_device` is in this thread, which `jax.default_device(...)` sets for one thread alone."""
    # whoever has set it has imported jax
    return jax().config.jax_default_device if "jax" in sys.modules else None


def resolve(chosen: Any) -> Any:
    """The `jax.Device` that uncommitted arrays go to: the one that was chosen, or the first local device."""
    if isinstance(chosen, str):
        return jax().local_devices(backend=chosen)[0]
    return chosen if chosen is not None else jax().local_devices()[0]


def canonical(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that JAX makes of `dtype`: 64-bit types become 32-bit ones unless jax_enable_x64 is set."""
    return np.dtype(jax().dtypes.canonicalize_dtype(dtype))


@cache
def _tick() -> Any:
    def identity(x: Any) -> Any:
        return x

    return jax().jit(identity), np.zeros((), np.int8)


def collect() -> None:
    """Makes JAX drop the references to NumPy memory that it no longer needs.

    jaxlib cannot release a Python object on a thread that does not hold the GIL, so it keeps such references in a list
    that the next call from Python clears. Any call does; this is the cheapest public one.
    """
    identity, zero = _tick()
    identity(zero)


@cache
def copier(dtypes: tuple[np.dtype[Any], ...]) -> Callable[..., tuple[Any, ...]]:
    """A jitted function of as many arrays as `dtypes`, which returns copies of them converted to those dtypes.

    The result never shares memory with an argument: a copy is asked for by name even where the dtype is the same,
    because a mere identity may hand its argument through.
    """
    jnp = jax().numpy

    def copy(*arrays: Any) -> tuple[Any, ...]:
        return tuple(
            jnp.copy(array) if array.dtype == dtype else array.astype(dtype)
            for array, dtype in zip(arrays, dtypes, strict=True)
        )

    return jax().jit(copy)
