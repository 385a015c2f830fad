"""What we ask of JAX, in one place, imported only when a loader starts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from hydrax_gpu._place import settle
from hydrax_gpu._spec import Layout

__all__ = ["canonical", "chosen_device", "collect", "conversion", "copier", "dtypes_of", "jax", "prepare", "resolve"]

_log = logging.getLogger("hydrax_gpu")


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


def dtypes_of(layout: Layout) -> dict[str, np.dtype[Any]]:
    """The dtype that each array of a layout has in a batch; says where that is not the one that was declared."""
    dtypes = {array.name: canonical(array.jax_dtype) for array in layout.arrays}
    for array in layout.arrays:
        if dtypes[array.name] != array.jax_dtype:
            _log.warning(
                "array %r is declared as %s, but JAX makes %s of it because jax_enable_x64 is off",
                array.name, array.jax_dtype, dtypes[array.name],
            )  # fmt: skip
    return dtypes


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
    """`conversion`, jitted for the default device."""
    return jax().jit(conversion(dtypes))


def conversion(dtypes: tuple[np.dtype[Any], ...]) -> Callable[..., tuple[Any, ...]]:
    """A function, to be jitted, of as many arrays as `dtypes`, which returns copies of them converted to those dtypes.

    The result never shares memory with an argument: a copy is asked for by name even where the dtype is the same,
    because a mere identity may hand its argument through.
    """
    jnp = jax().numpy

    def copy(*arrays: Any) -> tuple[Any, ...]:
        return tuple(
            jnp.copy(array) if array.dtype == dtype else array.astype(dtype)
            for array, dtype in zip(arrays, dtypes, strict=True)
        )

    return copy
