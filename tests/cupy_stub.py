"""As much of CuPy as the package calls, on host memory and without streams: everything is done at once.

It shows that calls are made, with arguments that make sense; not that CUDA does what it is asked. Names and parameters
are those of CuPy 14; a name that is missing here is an AttributeError.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._kernels import device, sources
from hydrax_gpu._kernels.host import load


class CUDARuntimeError(RuntimeError):
    pass


class Stream:
    def __init__(self, *, non_blocking: bool) -> None:
        assert non_blocking, "the legacy default stream would wait for it"
        self.ptr = 1000 + id(self) % 1000

    def synchronize(self) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


class Event:
    def __init__(self, *, block: bool = False, disable_timing: bool = False) -> None:
        self.ptr = 5000 + id(self) % 1000
        self.done = True

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Runtime:
    """`cupy.cuda.runtime`, with a list of the calls that were made."""

    CUDARuntimeError = CUDARuntimeError

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.blocks: dict[int, np.ndarray[Any, Any]] = {}
        self.registered: dict[int, int] = {}
        self.refuse: set[str] = set()
        self.memory = (6 << 30, 80 << 30)
        self.devices = 2

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.refuse:
            raise CUDARuntimeError(f"cudaErrorRefused: {call[0]}")

    def malloc(self, size: int) -> int:
        self._call("malloc", size)
        block = np.full(size + 256, 0xEE, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.blocks[address] = block
        return address

    def free(self, ptr: int) -> None:
        self._call("free", ptr)
        del self.blocks[ptr]

    def memcpy(self, dst: int, src: int, size: int, kind: int) -> None:
        self._call("memcpy", dst, src, size, kind)
        assert kind == 1
        ctypes.memmove(dst, src, size)

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self._call("memcpyAsync", dst, src, size, kind, stream)
        assert kind in (1, 3) and stream >= 1000
        ctypes.memmove(dst, src, size)

    def memset(self, ptr: int, value: int, size: int) -> None:
        self._call("memset", ptr, value, size)
        ctypes.memset(ptr, value, size)

    def hostRegister(self, ptr: int, size: int, flags: int) -> None:
        self._call("hostRegister", ptr, size, flags)
        assert ptr % 4096 == 0 and size % 4096 == 0 and size > 0
        self.registered[ptr] = size

    def hostUnregister(self, ptr: int) -> None:
        self._call("hostUnregister", ptr)
        del self.registered[ptr]

    def memGetInfo(self) -> tuple[int, int]:
        return self.memory

    def eventRecord(self, event: int, stream: int) -> None:
        self._call("eventRecord", event, stream)
        assert event >= 5000 and 1000 <= stream < 5000

    def streamWaitEvent(self, stream: int, event: int, flags: int = 0) -> None:
        self._call("streamWaitEvent", stream, event)
        assert event >= 5000

    def deviceSynchronize(self) -> None:
        self._call("deviceSynchronize")

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        return {"name": b"a stub of a GPU"}

    def getDeviceCount(self) -> int:
        self._call("getDeviceCount")
        return self.devices

    def runtimeGetVersion(self) -> int:
        return 12090


class Device:
    attributes = {  # noqa: RUF012
        "MultiProcessorCount": 4,
        "MaxThreadsPerMultiProcessor": 2048,
        "MaxRegistersPerMultiprocessor": 65536,
    }

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...


class Function:
    num_regs = 32

    def __init__(self, name: str, arguments: type[ctypes.Structure]) -> None:
        self._entry = load(str(sources.LIBRARY)).entry(name)
        self._arguments = arguments

    def __call__(self, grid: Sequence[int], block: Sequence[int], arguments: tuple[Any, ...]) -> None:
        (value,) = arguments
        self._entry(self._arguments.from_buffer_copy(value.tobytes()))


class RawModule:
    """Runs the kernel of the host library, which is the same source."""

    def __init__(self, *, code: str, options: Sequence[str], backend: str) -> None:
        assert "HX_KERNEL" in code and backend == "nvrtc"
        self._source = next(path.stem for path in sources.kernels() if path.read_text() == code)
        self._types = [option.split("=")[1] for option in options if option.startswith("-DHX_")]
        assert bool(self._types) == ("HX_IN" in code)

    def get_function(self, name: str) -> Function:
        assert all(f"_{each}" in name for each in self._types), "compiled for other types than it is asked for"
        return Function(name, importlib.import_module(f"hydrax_gpu._kernels.{self._source}").Args)


def install(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Lets `import cupy` find the stub, until the end of the test."""
    runtime = Runtime()
    cuda = types.ModuleType("cupy.cuda")
    cuda.__dict__.update(
        runtime=runtime, Stream=Stream, Event=Event, Device=Device, get_elapsed_time=lambda begin, end: 1.0
    )
    cupy = types.ModuleType("cupy")
    cupy.__dict__.update(cuda=cuda, RawModule=RawModule, __version__="14.2.0")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    # neither finds the real one, which was found before, nor leaves the stub to those that come after
    monkeypatch.setattr(device, "_cupy", lambda: cupy)
    monkeypatch.setattr(device, "_module", device._module.__wrapped__)
    for name in ("hydrax_gpu._place.cuda", "hydrax_gpu._place.cuda_kernels"):
        # imported anew now, and again after the test, when what it was before is restored
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    return runtime
