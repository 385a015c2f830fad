"""The kernels on a device, behind the interface of the host library, so that the same tests run them.

python -m tests.gpu.kernels KERNEL[:IN:OUT] ...

They are given the host's own memory, which is registered with CUDA for each call: slow, and right for a test.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hydrax_gpu._place.cuda_kernels import parts_of

PAGE = 4096
WINDOW = 4 << 20
"""Bytes from an argument's address on that a kernel may get at: no array of the tests is larger."""


def split_name(name: str) -> tuple[str, str, str]:
    """Source, input and output type of an entry."""
    if name.startswith("pad_ragged_"):
        splits, values = name.split("_")[-2:]
        return "pad_ragged", splits, values
    if name.startswith("quantize_"):  # which no device is asked for
        return "quantize", "", ""
    if name == "xxh3_64":
        return "xxh3", "", ""
    return parts_of(name)


def windows(addresses: list[int], maps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """`(begin, end)` of the pages to be registered, apart from each other; addresses that are none are left out."""
    found: list[tuple[int, int]] = []
    for address in addresses:
        for begin, end in maps:
            if begin <= address < end:
                found.append((address // PAGE * PAGE, min(end, (address + WINDOW) // PAGE * PAGE + PAGE)))
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def mappings() -> Iterator[tuple[int, int]]:
    """The process's memory that can be read and written; neighbours are one."""
    last: tuple[int, int] | None = None
    with open("/proc/self/maps") as file:
        for line in file:
            place, access = line.split()[:2]
            begin, end = (int(each, 16) for each in place.split("-"))
            if not access.startswith("rw") or "[v" in line:
                continue
            if last is not None and last[1] == begin:
                last = last[0], end
                continue
            if last is not None:
                yield last
            last = begin, end
    if last is not None:
        yield last


class DeviceLibrary:
    """As `hydrax_gpu._kernels.host.Library`."""

    def __init__(self) -> None:
        import cupy

        self._runtime: Any = cupy.cuda.runtime
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.launches = 0

    def entry(self, name: str) -> Any:
        from hydrax_gpu._kernels.device import DeviceKernel

        kernel = DeviceKernel(split_name(name)[0], name, *split_name(name)[1:])

        def call(arguments: ctypes.Structure) -> None:
            pointers = [
                getattr(arguments, field) or 0
                for field, kind, *_ in type(arguments)._fields_
                if kind is ctypes.c_void_p
            ]
            registered = windows(pointers, list(mappings()))
            for begin, end in registered:
                self._runtime.hostRegister(begin, end - begin, 0)
            try:
                kernel(arguments, arguments.rows, 7, self._stream)  # 7 tiles: the kernel loops over what is left
                self._stream.synchronize()
                self.launches += 1
            finally:
                for begin, _ in registered:
                    self._runtime.hostUnregister(begin)

        return call


def run(kernel: str, *combination: str) -> int:
    """Compares a kernel with its twin; returns how often it was launched."""
    from tests.sanitized import RUNS

    library: Any = DeviceLibrary()
    RUNS[kernel](library, np.random.default_rng(0), *combination)
    return library.launches


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {run(*argument.split(':'))} launches", flush=True)
