"""JAX's import of host memory, without what `jax.dlpack.from_dlpack` does around it.

That function asks the device for a stream, which on a CPU raises and catches an exception, and lets `jnp.asarray` look
at the result once more. Some 45 µs an array become 6; where batches of some MiB have just gone through the processor's
caches, 250 become 100. The function beneath is not public. So it is tried once, on a small array, beside the public
one: only if nothing can tell the results apart, and the memory is let go of as it should be, it is used from then on.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

from hydrax_gpu._place import jaxio

__all__ = ["Import", "importer"]

_log = logging.getLogger("hydrax_gpu")

_CPU = 1  # DLDeviceType
_ALIGNED = 64

Import: TypeAlias = "Callable[[Any], Any]"
"""Makes a `jax.Array` of a DLPack capsule of host memory, or raises."""


@cache
def importer(index: int) -> Import | None:
    """The import for the CPU device with that index; None if this version of JAX has none that can be relied on."""
    try:
        found = _find(index)
    except Exception as error:  # whatever a version of JAX that we do not know does
        found, why = None, f"{type(error).__name__}: {error}"
    else:
        why = "it does not do what jax.dlpack.from_dlpack does"
    if found is None:
        _log.info("batches are handed to JAX by its public function, which is slower: %s", why)
    return found


def _beneath() -> Any:
    return import_module("jax._src.lib")._jax.dlpack_managed_tensor_to_buffer


def _find(index: int) -> Import | None:
    backend: Any = import_module("jax.extend.backend")
    device: Any = backend.get_backend("cpu").device_from_local_hardware_id(index)
    convert = _beneath()

    def of_new(capsule: Any) -> Any:
        return convert(capsule, device, None, False, _CPU)

    def of_old(capsule: Any) -> Any:
        return convert(capsule, device, None, False)

    for candidate in (of_new, of_old):
        try:
            candidate(_sample().__dlpack__())
        except TypeError:  # of other arguments
            continue
        return candidate if _agrees(candidate, index) else None
    return None


def _sample() -> np.ndarray[Any, Any]:
    memory = np.zeros(6 * 4 + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    array = memory[start : start + 24].view(np.float32).reshape(2, 3)
    array[...] = np.arange(6).reshape(2, 3)
    return array


def _agrees(candidate: Import, index: int) -> bool:
    from hydrax_gpu._place.dlpack import Exporter

    sample = _sample()
    public = jaxio.jax().dlpack.from_dlpack(Exporter(sample, (_CPU, index)), copy=False)
    view = sample.view()
    ours = candidate(view.__dlpack__())
    same = (
        type(ours) is type(public)
        and ours.aval == public.aval
        and ours.sharding == public.sharding
        and ours.committed == public.committed
        and ours.unsafe_buffer_pointer() == public.unsafe_buffer_pointer() == sample.ctypes.data
        and np.array_equal(np.asarray(ours), sample)
    )
    released = weakref.ref(view)
    del view
    held = released() is not None
    del ours
    return same and held and released() is None
