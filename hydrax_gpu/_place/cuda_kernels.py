"""The kernels on a CUDA device, as the decodes and the conversion of dtypes call them. See `kernels/`."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from hydrax_gpu._kernels.convert import Args
from hydrax_gpu._kernels.device import THREADS, DeviceKernel
from hydrax_gpu._kernels.formats import tag
from hydrax_gpu._kernels.resize_crop_flip_normalize import Args as ResizeArgs
from hydrax_gpu._kernels.resize_crop_flip_normalize import factors
from hydrax_gpu._mem.encoded import PictureRows
from hydrax_gpu._place.device import Convert

__all__ = [
    "TILE", "ConvertKernel", "DeviceLibrary", "ResizeKernel", "arguments", "parts_of", "resize_tiles", "tables_of",
    "tiles_of",
]  # fmt: skip

TILE = 4096
"""Elements of a block's tile; `kPlane` in `convert.cu`. For the other kernels, bytes of a row that make a tile: they
loop over what is left, so that it need not be exact."""

_HOST_TO_DEVICE = 1

_COMBINED = {"convert": -2, "dequantize": 0}
"""Kernels that are compiled for one combination of types at a time, and where in an entry's name, after the kernel's,
the input type stands. The output type comes last."""

_ALL = ("convert", "dequantize", "srgb_to_oklab", "oklab_to_srgb", "unpack_bits")


def parts_of(entry: str) -> tuple[str, str, str]:
    """The source of an entry and the types that it is compiled for, `""` where it is compiled for all.

    Raises:
        KeyError: it is not one that a device decodes by.
    """
    for kernel in _ALL:
        if entry.startswith(f"{kernel}_"):
            if kernel in _COMBINED:
                parts = entry.removeprefix(f"{kernel}_").split("_")
                return kernel, parts[_COMBINED[kernel]], parts[-1]
            return ("srgb_oklab" if "oklab" in kernel else kernel), "", ""
    raise KeyError(f"no kernel for a device is called {entry!r}")


def tables_of(entry: str, given: ctypes.Structure) -> dict[str, int]:
    """The arguments that point to tables on the host, which are the same at every call, and their sizes in bytes."""
    source, _, _ = parts_of(entry)
    values: Any = given
    match source:
        case "convert":
            return {"scale": 4 * values.channels, "bias": 4 * values.channels}
        case "unpack_bits":
            return {"table": 256 * int(entry.rsplit("_", 1)[1])}
        case "srgb_oklab":
            return {"linear": 4 * 256}
        case _:
            return {}


def tiles_of(given: ctypes.Structure) -> int:
    """Roughly how many blocks a row can keep busy."""
    values: Any = given
    return max(1, -(-max(values.in_stride, values.out_stride) // TILE))


class DeviceLibrary:
    """What `hydrax_gpu._kernels.host.Library` is on the host: entries by name, which are called with their arguments.

    The addresses in those are of device memory, but for tables, which are uploaded at the first call.

    Args:
        runtime: CuPy's `cupy.cuda.runtime`.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.stream: Any = None
        """Where to launch."""

    def entry(self, name: str) -> Callable[[ctypes.Structure], None]:
        """The kernel with that name, compiled for the current device."""
        kernel = DeviceKernel(parts_of(name)[0], name, *parts_of(name)[1:])
        uploaded: dict[str, int] = {}

        def call(given: ctypes.Structure) -> None:
            values: Any = type(given).from_buffer_copy(given)
            for field, nbytes in tables_of(name, given).items():
                if field not in uploaded:
                    uploaded[field] = _upload(self._runtime, getattr(values, field), nbytes)
                setattr(values, field, uploaded[field])
            kernel(values, values.rows, tiles_of(values), self.stream)

        return call


def _upload(runtime: Any, host: int, nbytes: int) -> int:
    address = int(runtime.malloc(nbytes))  # for as long as the process lives: a few KB for each declared array
    runtime.memcpy(address, host, nbytes, _HOST_TO_DEVICE)
    return address


def arguments(work: Convert, scale: int, bias: int) -> Args:
    """What `convert` is called with: all elements as one plane of one row.

    Args:
        work: the conversion.
        scale: address of a float32 1.
        bias: address of a float32 -0, which, unlike 0, does not change -0.
    """
    return Args(
        in_=work.source,
        out=work.destination,
        scale=scale,
        bias=bias,
        in_stride=work.count * work.source_dtype.itemsize,
        out_stride=work.count * work.destination_dtype.itemsize,
        rows=1,
        pixels=work.count,
        channels=1,
    )


class ConvertKernel:
    """Converts on one device; that which is current when this is made and called.

    Args:
        runtime: CuPy's `cupy.cuda.runtime`.
    """

    def __init__(self, runtime: Any) -> None:
        factors = ctypes.create_string_buffer(struct.pack("<2f", 1.0, -0.0), 8)
        self._factors = _upload(runtime, ctypes.addressof(factors), 8)
        self._kernels: dict[tuple[np.dtype[Any], np.dtype[Any]], DeviceKernel] = {}

    def __call__(self, stream: Any, work: Convert) -> None:
        """Enqueues a conversion on a CuPy stream."""
        kernel = self._kernels.get((work.source_dtype, work.destination_dtype))
        if kernel is None:
            inputs, output = tag(work.source_dtype), tag(work.destination_dtype)
            kernel = DeviceKernel("convert", f"convert_first_{inputs}_{output}", inputs, output)
            self._kernels[work.source_dtype, work.destination_dtype] = kernel
        kernel(arguments(work, self._factors, self._factors + 4), 1, -(-work.count // TILE), stream)


def resize_tiles(given: ResizeArgs) -> tuple[int, int]:
    """Blocks of work of an item for the two launches: entries of its table, and stretches of its rows."""
    values: Any = given
    entries = -(-(values.width + values.height) // THREADS)
    return entries, values.height * -(-values.width * values.channels // THREADS)


class ResizeKernel:
    """Makes rows of decoded pictures on one device; that which is current when this is made and called.

    Two launches: one computes the filters' weights, which all pixels of a column or row share, the other the pixels.

    Args:
        runtime: CuPy's `cupy.cuda.runtime`.
        rows: what they are.
    """

    def __init__(self, runtime: Any, rows: PictureRows) -> None:
        source = "resize_crop_flip_normalize"
        self._channels = rows.channels
        self._affine, scale, bias = factors(rows.channels, rows.dtype, rows.scale, rows.bias)
        self._scale = _upload(runtime, scale.ctypes.data, scale.nbytes)
        self._bias = _upload(runtime, bias.ctypes.data, bias.nbytes)
        self._table = DeviceKernel(source, "resize_table")
        self._direct = DeviceKernel(source, f"resize_direct_{tag(rows.dtype)}")

    def __call__(self, stream: Any, given: ResizeArgs) -> None:
        """Enqueues both on a CuPy stream."""
        values: Any = given
        values.channels, values.affine = self._channels, self._affine
        values.scale, values.bias = self._scale, self._bias
        entries, stretches = resize_tiles(given)
        self._table(given, values.rows, entries, stream)
        self._direct(given, values.rows, stretches, stream)
