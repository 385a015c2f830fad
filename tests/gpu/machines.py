"""What the bodies of the GPU's tests need of a machine: the real one, and one that is made up, which tries the bodies.

Holding XLA's compute stream on a real GPU takes a trick, since XLA shows it to nobody: a kernel of our own spins on a
stream of our own until the host writes a word; JAX imports an array of which it is told that it is ready only behind
that kernel; and a computation on that array makes the compute stream wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from hydrax_gpu.testing import FakeDevice


class Machine(Protocol):
    """A device, and what computes on it."""

    def in_use(self) -> contextlib.AbstractContextManager[Any]:
        """Within this, loaders find the device."""
        ...

    def hold(self) -> Callable[[], None]:
        """Holds what is computed from now on, until the function that is returned is called."""
        ...

    def read(self, arrays: Mapping[str, Any]) -> Any:
        """Enqueues a computation that reads arrays (`x` and `y` of `load.mark`) and does not keep them."""
        ...

    def results(self, read: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """What it has read: for each row the smallest and largest element of `x` and `y`; shape (rows, 3)."""
        ...

    def without_fence(self) -> contextlib.AbstractContextManager[Any]:
        """Within this, the fence does nothing."""
        ...


class FakeMachine:
    """A `FakeDevice`."""

    def __init__(self) -> None:
        self.device = FakeDevice(jax=False)

    def in_use(self) -> contextlib.AbstractContextManager[Any]:
        return self.device.in_use()

    def hold(self) -> Callable[[], None]:
        return self.device.latch()

    def read(self, arrays: Mapping[str, Any]) -> Any:
        found: list[Any] = []

        def compute(x: Any, y: Any) -> None:
            rows = x.reshape(len(x), -1)
            found.append(np.stack([rows.min(1), rows.max(1), y], 1).astype(np.int64))

        self.device.launch(compute, arrays["x"], arrays["y"])
        return found

    def results(self, read: Any) -> Any:
        self.device.run()
        return read[0]

    @contextlib.contextmanager
    def without_fence(self) -> Any:
        self.device._fences_work = False
        yield
        self.device._fences_work = True


_SPIN = r"""
extern "C" __global__ void spin(volatile int* word) {
    while (*word == 0) __nanosleep(2000);
}
"""


class CudaMachine:
    """The first GPU of JAX's."""

    def __init__(self) -> None:
        import cupy
        import jax
        import jax.numpy as jnp

        self.cupy, self.jax = cupy, jax
        self._spin = cupy.RawKernel(_SPIN, "spin")
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._held: list[Any] = []

        def reduce(x: Any, y: Any) -> Any:
            rows = x.reshape(len(x), -1).astype(jnp.int32)
            return jnp.stack([rows.min(1), rows.max(1), y], 1)

        self._reduce = jax.jit(reduce)
        self._touch = jax.jit(lambda x: x + 1)
        # A kernel that is loaded while another spins may wait for that one's end. So all are loaded before.
        self._touch(jnp.zeros(64, jnp.int32)).block_until_ready()
        self.hold()()
        self._held[-1][-1].block_until_ready()

    def in_use(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def hold(self) -> Callable[[], None]:
        from hydrax_gpu._place.dlpack import Exporter

        cupy, runtime = self.cupy, self.cupy.cuda.runtime
        pinned = cupy.cuda.alloc_pinned_memory(4)  # which the device reads by the same address
        word = np.frombuffer(pinned, np.int32, 1)
        word[0] = 0
        target = cupy.zeros(64, cupy.int32)
        cupy.cuda.Device().synchronize()
        with self._stream:
            self._spin((1,), (1,), (np.uintp(pinned.ptr),))
        event = cupy.cuda.Event(disable_timing=True)
        event.record(self._stream)
        memory = (ctypes.c_ubyte * 256).from_address(target.data.ptr)
        view = np.ndarray((64,), np.int32, buffer=memory)
        exporter = Exporter(view, (2, 0), lambda reader: runtime.streamWaitEvent(int(reader), event.ptr))
        held = self._touch(self.jax.dlpack.from_dlpack(exporter, copy=False))
        self._held = [*self._held[-64:], (pinned, target, event, held)]

        def open_latch() -> None:
            word[0] = 1

        return open_latch

    def read(self, arrays: Mapping[str, Any]) -> Any:
        return self._reduce(arrays["x"], arrays["y"])

    def results(self, read: Any) -> Any:
        return np.asarray(read)

    @contextlib.contextmanager
    def without_fence(self) -> Any:
        from hydrax_gpu._place.cuda import CudaDevice

        whole = CudaDevice.fence
        CudaDevice.fence = lambda self, stream: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            CudaDevice.fence = whole  # type: ignore[method-assign]
