"""NumPy arrays to `jax.Array`s on the same memory, through DLPack.

JAX lets go of a DLPack import on the spot, when the last array, view or running computation that uses it is done, and
not at some later call as it does with `device_put`. That is why slots are exported this way: their recycling rests on
it. The capsule is NumPy's own, whose deleter also copes with an interpreter that is shutting down.

That goes for memory of a device, too: a NumPy array over it is made, of which nobody reads an element, and its capsule
is told where it lies.

Source: DLPack's C header, `struct DLTensor` and `DLManagedTensor` (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._place import jaxio
from hydrax_gpu._place.direct import importer

if TYPE_CHECKING:
    import jax

__all__ = ["Exporter", "to_jax"]

_CPU = 1
_NEVER_NARROWED = 4  # bytes of an element; larger ones may be of types that JAX makes others of

# (DLDataTypeCode, bits) of the dtypes that NumPy cannot export under their own name. They travel as unsigned
# integers of the same width, and the capsule's type is set right before JAX reads it.
_PATCHED: dict[str, tuple[int, int]] = {
    "bool": (6, 8),
    "bfloat16": (4, 16),
    "float8_e3m4": (7, 8),
    "float8_e4m3": (8, 8),
    "float8_e4m3b11fnuz": (9, 8),
    "float8_e4m3fn": (10, 8),
    "float8_e4m3fnuz": (11, 8),
    "float8_e5m2": (12, 8),
    "float8_e5m2fnuz": (13, 8),
    "float8_e8m0fnu": (14, 8),
}


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def to_jax(array: npt.NDArray[Any], device_index: int = 0) -> jax.Array:
    """A `jax.Array` on the memory of `array`, on the CPU device with index `device_index`.

    The memory is shared, not copied, and `array` stays alive until JAX no longer reads it.

    Args:
        array: C-contiguous, writable, 64-byte aligned, of any dtype that a layout accepts.

    Raises:
        ValueError: JAX would have had to copy.
    """
    exporter = Exporter(array, (_CPU, device_index))
    if array.dtype.itemsize <= _NEVER_NARROWED and (take := importer(device_index)) is not None:
        with contextlib.suppress(Exception):  # the public function has the words for what is wrong
            return take(exporter.__dlpack__())
    return jaxio.jax().dlpack.from_dlpack(exporter, copy=False)


@cache
def _patch_of(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    return _PATCHED.get(dtype.name)  # NumPy makes the name anew each time, which takes longer than all the rest


class Exporter:
    """The DLPack protocol for one array.

    Args:
        array: C-contiguous, writable; of its memory only the address is looked at.
        device: `(DLDeviceType, index)` of that memory.
        order: called with the stream that is going to read, before the capsule is made.
    """

    __slots__ = ("_device", "_order", "view")

    def __init__(
        self, array: npt.NDArray[Any], device: tuple[int, int], order: Callable[[Any], None] | None = None
    ) -> None:
        self.view = array
        self._device = device
        self._order = order

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        # The consumer's version and copy wishes mean nothing here: the older format, and no copy, is all there is.
        if self._order is not None:
            self._order(stream)
        array = self.view
        patch = _patch_of(array.dtype)
        if patch is None and self._device[0] == _CPU:
            return array.__dlpack__()
        capsule = (array if patch is None else array.view(np.dtype(f"u{array.dtype.itemsize}"))).__dlpack__()
        tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
        tensor.device_type, tensor.device_id = self._device
        if patch is not None:
            tensor.code, tensor.bits = patch
        return capsule
