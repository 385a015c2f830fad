"""The kernel that converts dtypes, on a CUDA device. See `kernels/convert.cu`."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

from hydrax_gpu._kernels.convert import Args
from hydrax_gpu._kernels.device import DeviceKernel
from hydrax_gpu._kernels.formats import tag
from hydrax_gpu._place.device import Convert

__all__ = ["TILE", "ConvertKernel", "arguments"]

TILE = 4096
"""Elements of a block's tile; `kPlane` in the source."""

_HOST_TO_DEVICE = 1


def arguments(work: Convert, scale: int, bias: int) -> Args:
    """What the kernel is called with: all elements as one plane of one row.

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
        self._factors = int(runtime.malloc(8))  # for as long as the process lives
        runtime.memcpy(self._factors, ctypes.addressof(factors), 8, _HOST_TO_DEVICE)
        self._kernels: dict[tuple[np.dtype[Any], np.dtype[Any]], DeviceKernel] = {}

    def prepare(self, source: np.dtype[Any], destination: np.dtype[Any]) -> DeviceKernel:
        """Compiles the kernel for a pair of dtypes, if it is not yet."""
        kernel = self._kernels.get((source, destination))
        if kernel is None:
            inputs, output = tag(source), tag(destination)
            kernel = DeviceKernel("convert", f"convert_first_{inputs}_{output}", inputs, output)
            self._kernels[source, destination] = kernel
        return kernel

    def __call__(self, stream: Any, work: Convert) -> None:
        """Enqueues a conversion on a CuPy stream."""
        kernel = self.prepare(work.source_dtype, work.destination_dtype)
        kernel(arguments(work, self._factors, self._factors + 4), 1, -(-work.count // TILE), stream)
