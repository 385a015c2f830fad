"""`Device` for CUDA, by CuPy. Imported only where JAX has a CUDA device and CuPy is installed.

CuPy is used for what it is thinnest at: the runtime's calls, streams and events. Its memory pool is not: that gives a
block out again as soon as nothing in Python refers to it, which is the very thing that `ring.py` is about.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import cupy  # pyright: ignore[reportMissingImports]
import numpy as np

from hydrax_gpu._kernels.resize_crop_flip_normalize import Args
from hydrax_gpu._mem.encoded import PictureRows
from hydrax_gpu._mem.graphs import FieldArrays, GraphRows, OpenGraph
from hydrax_gpu._place import jaxio
from hydrax_gpu._place.conversions import exact
from hydrax_gpu._place.decoding import bind
from hydrax_gpu._place.device import (
    Convert,
    Decoder,
    DeviceMemory,
    GraphOutcome,
    ImageDecoder,
    Owner,
    Picture,
    Resizer,
)
from hydrax_gpu._place.dlpack import Exporter
from hydrax_gpu._spec import Layout

__all__ = ["CudaDevice", "CudaGraph"]

_HOST_TO_DEVICE, _DEVICE_TO_DEVICE = 1, 3
_PORTABLE = 1  # pinned for all devices of the process
_CUDA, _CUDA_HOST = 2, 3  # DLDeviceType

# CuPy has no types that pyright could see.
_cuda: Any = cupy.cuda  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_runtime: Any = _cuda.runtime  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _increment(x: Any) -> Any:
    return x + 1


class CudaDevice:
    """The CUDA device of a `jax.Device`.

    Args:
        jax_device: a local device of JAX's, whose backend is running.
    """

    def __init__(self, jax_device: Any) -> None:
        self._jax_device = jax_device
        self._id = int(jax_device.local_hardware_id)
        self._here = _cuda.Device(self._id)
        jax = jaxio.jax()
        self._zero = jax.device_put(np.zeros((), np.int8), jax_device)
        self._fence = jax.jit(_increment)
        # Compiles the fence, and makes XLA take its memory: what is free after that is ours.
        self._fence(self._zero).block_until_ready()
        with self._here:
            properties: dict[str, Any] = _runtime.getDeviceProperties(self._id)
        name = properties["name"]
        self._name = name.decode() if isinstance(name, bytes) else str(name)
        self._convert: Any = None

    @property
    def name(self) -> str:
        """See `device.Device`, as for all that follow."""
        return self._name

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """Memory of the device."""
        return _CUDA, self._id

    # Memory.

    def free_memory(self) -> tuple[int, int]:
        """What the driver says."""
        with self._here:
            free, total = _runtime.memGetInfo()
        return int(free), int(total)

    def allocate(self, nbytes: int, owner: Owner) -> DeviceMemory:
        """By `cudaMalloc`, or as an array of XLA's that nobody computes with."""
        if owner == "xla":
            jax = jaxio.jax()
            try:
                with jax.default_device(self._jax_device):
                    array: Any = jax.numpy.zeros((nbytes,), np.uint8)
                array.block_until_ready()
            except Exception as error:  # jaxlib's own, RESOURCE_EXHAUSTED
                raise MemoryError(str(error)) from error
            return DeviceMemory(int(array.unsafe_buffer_pointer()), nbytes, owner, array)
        with self._here:
            try:
                address = int(_runtime.malloc(nbytes))
            except _runtime.CUDARuntimeError as error:
                raise MemoryError(str(error)) from error
        memory = DeviceMemory(address, nbytes, owner)
        weakref.finalize(memory, self._free, address).atexit = False
        return memory

    def _free(self, address: int) -> None:
        with self._here:
            _runtime.deviceSynchronize()  # batches that were dropped may still be read
            _runtime.free(address)

    def pin(self, address: int, nbytes: int) -> None:
        """By `cudaHostRegister`."""
        with self._here:
            try:
                _runtime.hostRegister(address, nbytes, _PORTABLE)
            except _runtime.CUDARuntimeError as error:
                raise OSError(str(error)) from error

    def unpin(self, address: int) -> None:
        """By `cudaHostUnregister`."""
        with self._here:
            _runtime.hostUnregister(address)

    # Streams.

    def new_stream(self) -> Any:
        """One that the legacy default stream does not wait for, nor it for that."""
        with self._here:
            return _cuda.Stream(non_blocking=True)

    def new_event(self) -> Any:
        """One without a time."""
        with self._here:
            return _cuda.Event(block=False, disable_timing=True)

    def record(self, event: Any, stream: Any) -> None:
        """`cudaEventRecord`."""
        _runtime.eventRecord(event.ptr, stream.ptr)

    def wait(self, stream: Any, event: Any) -> None:
        """`cudaStreamWaitEvent`."""
        _runtime.streamWaitEvent(stream.ptr, event.ptr)

    def done(self, event: Any) -> bool:
        """`cudaEventQuery`."""
        return bool(event.done)

    def synchronize(self, stream: Any) -> None:
        """`cudaStreamSynchronize`."""
        with self._here:
            stream.synchronize()

    # Work.

    def copy_in(self, stream: Any, destination: int, source: int, nbytes: int) -> None:
        """`cudaMemcpyAsync`."""
        with self._here:
            _runtime.memcpyAsync(destination, source, nbytes, _HOST_TO_DEVICE, stream.ptr)

    def copy(self, stream: Any, destination: int, source: int, nbytes: int) -> None:
        """`cudaMemcpyAsync`."""
        with self._here:
            _runtime.memcpyAsync(destination, source, nbytes, _DEVICE_TO_DEVICE, stream.ptr)

    def converts(self, source: np.dtype[Any], destination: np.dtype[Any]) -> bool:
        """What `kernels/convert.cu` can do exactly."""
        return exact(source, destination)

    def convert(self, stream: Any, work: Convert) -> None:
        """By `kernels/convert.cu`."""
        with self._here:
            if self._convert is None:
                from hydrax_gpu._place.cuda_kernels import ConvertKernel

                self._convert = ConvertKernel(_runtime)
            self._convert(stream, work)

    def decoder(self, layout: Layout) -> Decoder:
        """By the kernels of `kernels/`, one launch for each array."""
        from hydrax_gpu._place.cuda_kernels import DeviceLibrary

        with self._here:
            library = DeviceLibrary(_runtime)
            bound = bind(layout, library)

        def decode(stream: Any, loaded: Any, batch: Any) -> None:
            with self._here:
                library.stream = stream
                for each in bound:
                    each(loaded, batch)

        return decode

    def image_decoder(self, channels: int) -> ImageDecoder:
        """By nvImageCodec."""
        from hydrax_gpu._place.cuda_images import NvImageDecoder

        with self._here:
            decode = NvImageDecoder(self._id, channels)

        def on_device(stream: Any, pictures: Sequence[Picture]) -> Sequence[str | None]:
            with self._here:
                return decode(stream, pictures)

        return on_device

    def resizer(self, rows: PictureRows) -> Resizer:
        """By `kernels/resize_crop_flip_normalize.cu`."""
        from hydrax_gpu._place.cuda_kernels import ResizeKernel

        with self._here:
            kernel = ResizeKernel(_runtime, rows)

        def resize(stream: Any, given: Args) -> None:
            with self._here:
                kernel(stream, given)

        return resize

    def graph(self, rows: GraphRows, training: bool) -> CudaGraph:
        """By what the rows are made with, which is DALI."""
        with self._here:
            return CudaGraph(self._here, rows.open(training, self._id))

    # XLA.

    def fence(self, stream: Any) -> None:
        """A trivial computation, and DLPack's wait for it."""
        # The capsule is dropped at once: what we wanted of it, the stream's wait for the array, is enqueued.
        self._fence(self._zero).__dlpack__(stream=stream.ptr)

    def order_reader(self, reader: Any, event: Any) -> None:
        """`cudaStreamWaitEvent` on JAX's stream."""
        if reader is None:
            raise RuntimeError(
                "JAX names no stream on which it is going to read a batch, so that the batch cannot be filled in time; "
                "use delivery='copy' with this version of jax"
            )
        if reader != -1:  # the consumer wants no ordering
            _runtime.streamWaitEvent(int(reader), event.ptr)

    def to_jax(self, exporter: Any) -> Any:
        """By DLPack."""
        return jaxio.jax().dlpack.from_dlpack(exporter, copy=False)

    def copy_to_jax(self, view: np.ndarray[Any, Any]) -> Any:
        """Imports pinned memory as an array of memory kind `pinned_host` and lets XLA copy that.

        XLA holds the source until its copy is done, so that the view's lease tells when.
        """
        jax = jaxio.jax()
        pinned = jax.dlpack.from_dlpack(Exporter(view, (_CUDA_HOST, self._id)), copy=False)
        target = jax.sharding.SingleDeviceSharding(self._jax_device, memory_kind="device")
        return jax.device_put(pinned, target)


class CudaGraph:
    """A graph that was built for a CUDA device.

    Args:
        here: the device, of CuPy's.
        graph: the graph.
    """

    def __init__(self, here: Any, graph: OpenGraph) -> None:
        self._here, self._graph = here, graph

    @property
    def names(self) -> tuple[str, ...]:
        """See `device.Graph`, as for all that follow."""
        return self._graph.names

    def run(
        self, stream: Any, rows: Sequence[int], fields: Mapping[int, FieldArrays], seeds: Mapping[int, int] | None
    ) -> list[GraphOutcome]:
        """All of it at once, since which device is current is not to change in between."""
        with self._here:
            return list(self._graph.run(rows, fields, seeds, stream.ptr))
