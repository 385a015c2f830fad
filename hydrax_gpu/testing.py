"""`FakeDevice`: a GPU made of host memory, for tests that need to see what a real one would do to them.

It has streams, events, device memory and an XLA of its own, and does nothing by itself: a stream's next operation is
done when a test says so (`step`), so that any interleaving can be tried and the same one again. What makes GPUs hard is
there: the host runs ahead of all streams, and an array that is dropped is let go of although computations that read it
have yet to run.

    device = FakeDevice()
    with device.in_use(), Dataloader(load, group, delivery="alias") as loader:
        ...
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._fakedecoding import FakeGraph, FakeImageDecoder, window
from hydrax_gpu._kernels.choice import choose
from hydrax_gpu._kernels.formats import tag
from hydrax_gpu._kernels.host import load
from hydrax_gpu._kernels.resize_crop_flip_normalize import Args, factors, run_twin
from hydrax_gpu._mem.encoded import PictureRows
from hydrax_gpu._mem.graphs import GraphRows
from hydrax_gpu._place import backends, jaxio
from hydrax_gpu._place.conversions import exact
from hydrax_gpu._place.decoding import bind
from hydrax_gpu._place.device import Convert, Decoder, DeviceMemory, Graph, ImageDecoder, Owner, Picture, Resizer
from hydrax_gpu._spec import ALIGNMENT, Layout

__all__ = ["FakeArray", "FakeDevice", "FakeEvent", "FakeStream"]


@dataclass(slots=True, eq=False)
class FakeEvent:
    """A place in a stream."""

    recorded: int = 0
    reached: int = 0


@dataclass(slots=True)
class _Operation:
    what: str
    run: Callable[[], None]
    ready: Callable[[], bool]
    source: int = -1
    """Address of the host memory that it reads."""


@dataclass(slots=True, eq=False)
class FakeStream:
    """Operations in order, none of which is done before `FakeDevice.step` or `run`."""

    name: str
    operations: deque[_Operation] = field(default_factory=deque[_Operation])

    @property
    def blocked(self) -> bool:
        """Whether there is nothing to do here, or the next operation waits for another stream or a latch."""
        return not self.operations or not self.operations[0].ready()


class FakeArray:
    """What `FakeDevice(jax=False)` imports: shape, dtype and a place in device memory. Dropping it gives that back.

    Attributes:
        shape: with the batch dimension.
        dtype: its dtype.
        address: of its memory.
    """

    def __init__(self, view: npt.NDArray[Any], ready: FakeEvent) -> None:
        self.shape: tuple[int, ...] = view.shape
        self.dtype: np.dtype[Any] = view.dtype
        self.address: int = view.ctypes.data
        self.ready: FakeEvent = ready
        self._view = view  # keeps the lease

    def __repr__(self) -> str:
        return f"FakeArray(shape={self.shape}, dtype={self.dtype})"


class FakeDevice:
    """A device whose streams are stepped by hand; see the module. Safe for threads.

    Args:
        jax: whether batches are `jax.Array`s of the CPU. They have to hold their values at once, so that importing one
            runs the streams as far as it takes. Otherwise they are `FakeArray`s, for `launch`.
        automatic: whether the streams do what they can whenever they are asked how far they are. Otherwise only `step`
            and `run` do.
        memory: bytes outside of what XLA has reserved.
        xla_memory: bytes that XLA can give.
        pin_error: why host memory cannot be pinned.
        fences: whether fences work. Without them a loader is wrong, and a test of it should fail.
        orders_readers: whether XLA waits for batches to be filled before it reads them.
        index: of the local device of the CPU's JAX that has its batches.
    """

    def __init__(
        self,
        *,
        jax: bool = True,
        automatic: bool = True,
        memory: int = 1 << 30,
        xla_memory: int = 1 << 30,
        pin_error: str | None = None,
        fences: bool = True,
        orders_readers: bool = True,
        index: int = 0,
    ) -> None:
        self._index = index
        self._jax = jax
        self._automatic = automatic
        self._memory: dict[Owner, int] = {"device": memory, "xla": xla_memory}
        self._total = memory
        self._pin_error = pin_error
        self._fences_work = fences
        self._orders_readers = orders_readers
        self._lock = threading.RLock()
        self.compute: FakeStream = FakeStream("XLA's compute stream")
        self.side: FakeStream = FakeStream("XLA's side stream")
        self.transfers: FakeStream = FakeStream("XLA's transfer stream")
        self.streams: list[FakeStream] = [self.compute, self.side, self.transfers]
        self.pinned: dict[int, int] = {}
        """Host memory that is registered: address → bytes."""
        self.fenced: int = 0
        """Number of fences that were asked for."""
        self.copies: list[tuple[int, int, int]] = []
        """`(destination, source, bytes)` of each copy that was asked for."""
        self.pictures: list[Picture] = []
        """The parts of pictures that were decoded."""
        self.graph_rows: int = 0
        """Number of rows that a graph has made."""
        self.refuses: Callable[[bytes], str | None] = lambda data: None
        """For a file's bytes, why the device does not decode it; None if it does. To be set by a test."""
        self.before_decoding: Callable[[], object] = lambda: None
        """Called before pictures are decoded, on the thread that has to wait for that. To be set by a test."""
        self.decoder_error: str | None = None
        """Why pictures cannot be decoded at all. To be set by a test."""

    # What a test does.

    @contextlib.contextmanager
    def in_use(self) -> Generator[FakeDevice, None, None]:
        """Lets loaders that start meanwhile find this device in the place of the one that JAX has."""
        with backends.replaced(lambda _: self):
            yield self

    def launch(self, function: Callable[..., object], *arrays: FakeArray, what: str = "computation") -> None:
        """Enqueues a computation on XLA's compute stream.

        `function` is called with the memory of `arrays`, as NumPy arrays, when its turn comes. As XLA on CUDA does, it
        keeps none of the arrays alive until then.
        """
        with self._lock:
            for array in arrays:
                self.wait(self.compute, array.ready)
            places = [(array.address, array.shape, array.dtype) for array in arrays]

            def run() -> None:
                function(*(window(*place) for place in places))

            self._add(self.compute, what, run)

    def enqueue(self, stream: FakeStream, what: str, run: Callable[[], None]) -> None:
        """Enqueues an operation on a stream."""
        with self._lock:
            self._add(stream, what, run)

    def latch(self, stream: FakeStream | None = None) -> Callable[[], None]:
        """Holds a stream (by default the compute stream) until the function that is returned is called."""
        event = FakeEvent(recorded=1)

        def open_latch() -> None:
            with self._lock:
                event.reached = 1
                if self._automatic:
                    self.run()

        with self._lock:
            self.wait(self.compute if stream is None else stream, event)
        return open_latch

    def runnable(self) -> list[FakeStream]:
        """The streams that have something to do and need not wait."""
        with self._lock:
            return [stream for stream in self.streams if not stream.blocked]

    def step(self, stream: FakeStream) -> str:
        """Does the next operation of a stream that is not blocked, and returns what it was."""
        with self._lock:
            if stream.blocked:
                raise ValueError(f"{stream.name} has nothing to do, or waits for another")
            operation = stream.operations.popleft()
            operation.run()
            return operation.what

    def run(self) -> None:
        """Does everything that can be done."""
        with self._lock:
            while runnable := self.runnable():
                for stream in runnable:
                    while not stream.blocked:
                        self.step(stream)

    @property
    def idle(self) -> bool:
        """Whether no stream has anything left to do."""
        with self._lock:
            return not any(stream.operations for stream in self.streams)

    def free_bytes(self, owner: Owner) -> int:
        """What is left of the memory outside XLA's, or of XLA's."""
        return self._memory[owner]

    # The protocol of a device.

    @property
    def name(self) -> str:
        """See `_place.device`, as for all that follow."""
        return "a fake device"

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """Host memory."""
        return 1, self._index

    def free_memory(self) -> tuple[int, int]:
        """What is free outside XLA's reservation, and all there is."""
        return self._memory["device"], self._total

    def allocate(self, nbytes: int, owner: Owner) -> DeviceMemory:
        """Takes memory, of which every byte is 0xEE."""
        with self._lock:
            if nbytes > self._memory[owner]:
                raise MemoryError(f"out of memory: {nbytes:,} bytes asked for, {self._memory[owner]:,} left")
            self._memory[owner] -= nbytes
        block = np.full(nbytes + ALIGNMENT, 0xEE, np.uint8)
        address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
        memory = DeviceMemory(address, nbytes, owner, block)
        weakref.finalize(memory, self._free, nbytes, owner).atexit = False
        return memory

    def _free(self, nbytes: int, owner: Owner) -> None:
        with self._lock:
            self._memory[owner] += nbytes

    def pin(self, address: int, nbytes: int) -> None:
        """Notes it in `pinned`, or raises OSError with `pin_error`."""
        if self._pin_error is not None:
            raise OSError(self._pin_error)
        self.pinned[address] = nbytes

    def unpin(self, address: int) -> None:
        """Takes it out of `pinned`."""
        begin, end = address, address + self.pinned.pop(address)
        if any(begin <= op.source < end for stream in self.streams for op in stream.operations):
            raise AssertionError("host memory was unpinned while the device had yet to read it")

    def new_stream(self) -> FakeStream:
        """A stream, which `step` knows."""
        stream = FakeStream(f"stream {len(self.streams)}")
        self.streams.append(stream)
        return stream

    def new_event(self) -> FakeEvent:
        """An event."""
        return FakeEvent()

    def record(self, event: FakeEvent, stream: FakeStream) -> None:
        """Marks a place."""
        with self._lock:
            event.recorded += 1
            mark = event.recorded

            def reach() -> None:
                event.reached = max(event.reached, mark)

            self._add(stream, "record", reach)

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Waits for the place that is marked now, whatever is recorded later."""
        with self._lock:
            mark = event.recorded
            self._add(stream, "wait", lambda: None, lambda: event.reached >= mark)

    def done(self, event: FakeEvent) -> bool:
        """Whether it is reached; if `automatic`, after doing what can be done."""
        with self._lock:
            if self._automatic:
                self.run()
            return event.reached >= event.recorded

    def synchronize(self, stream: FakeStream) -> None:
        """Runs the streams until this one is through.

        Raises:
            RuntimeError: that never happens; on a real device the host would hang.
        """
        with self._lock:
            self.run()
            if stream.operations:
                raise RuntimeError(f"the host waits for {stream.name}, which waits for ever")

    def copy_in(self, stream: FakeStream, destination: int, source: int, nbytes: int) -> None:
        """Copies what is in the host memory when its turn comes."""
        with self._lock:
            self.copies.append((destination, source, nbytes))
            self._add(stream, "copy in", lambda: _move(destination, source, nbytes), source=source)

    def copy(self, stream: FakeStream, destination: int, source: int, nbytes: int) -> None:
        """Copies what is in the device's memory when its turn comes."""
        self.enqueue(stream, "copy", lambda: _move(destination, source, nbytes))

    def converts(self, source: np.dtype[Any], destination: np.dtype[Any]) -> bool:
        """What the kernels can do."""
        return exact(source, destination)

    def convert(self, stream: FakeStream, work: Convert) -> None:
        """By NumPy."""

        def run() -> None:
            source = window(work.source, (work.count,), work.source_dtype)
            window(work.destination, (work.count,), work.destination_dtype)[:] = source.astype(work.destination_dtype)

        with self._lock:
            self._add(stream, "convert", run)

    def decoder(self, layout: Layout) -> Decoder:
        """By the kernels' NumPy twins."""
        bound = bind(layout, None)

        def decode(stream: FakeStream, loaded: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
            def run() -> None:
                for each in bound:
                    each(loaded, batch)

            with self._lock:
                self._add(stream, "decode", run)

        return decode

    def image_decoder(self, channels: int) -> ImageDecoder:
        """By the decoders of the CPU, at once; the pixels come when it is the stream's turn."""
        if self.decoder_error is not None:
            raise ImportError(self.decoder_error)
        return FakeImageDecoder(self, channels, choose().path)

    def graph(self, rows: GraphRows, training: bool) -> Graph:
        """By what runs it on the CPU, at once; the outputs come when it is the stream's turn."""
        if self.decoder_error is not None:
            raise ImportError(self.decoder_error)
        return FakeGraph(self, rows.open(training, None))

    def resizer(self, rows: PictureRows) -> Resizer:
        """By the host library, the way that a device goes, or, where there is none, by the twin."""
        affine, scale, bias = factors(rows.channels, rows.dtype, rows.scale, rows.bias)
        path = choose().path
        library = None if path is None else load(path)

        def resize(stream: FakeStream, given: Args) -> None:
            own: Any = Args.from_buffer_copy(given)
            own.channels, own.affine = rows.channels, affine
            own.scale, own.bias = scale.ctypes.data, bias.ctypes.data

            def run() -> None:
                if library is None:
                    run_twin(own, rows.dtype, scale, bias)
                    return
                library.entry("resize_table")(own)
                library.entry(f"resize_direct_{tag(rows.dtype)}")(own)

            with self._lock:
                self._add(stream, "resize", run)

        return resize

    def fence(self, stream: FakeStream) -> None:
        """Waits for what `compute` has now; or does not, if `fences` is off."""
        with self._lock:
            self.fenced += 1
            if self._fences_work:
                event = FakeEvent()
                self.record(event, self.compute)
                self.wait(stream, event)

    def order_reader(self, reader: Any, event: FakeEvent) -> None:
        """Makes XLA's side stream wait; or does not, if `orders_readers` is off."""
        if reader is not self.side:
            raise AssertionError(f"JAX named {self.side.name}, but {reader!r} was made to wait")
        if self._orders_readers:
            self.wait(self.side, event)

    def to_jax(self, exporter: Any) -> Any:
        """Imports as XLA on CUDA does: the array is there at once, its content when the side stream gets there."""
        with self._lock:
            exporter.__dlpack__(stream=self.side)
            ready = FakeEvent()
            self.record(ready, self.side)
            if not self._jax:
                return FakeArray(exporter.view, ready)
            self.run()
            if ready.reached < ready.recorded:
                raise RuntimeError("a batch of the CPU's JAX has to be filled at once, but a latch holds that up")
            return jaxio.jax().dlpack.from_dlpack(_Ordered(exporter, self.side), copy=False)

    def copy_to_jax(self, view: npt.NDArray[Any]) -> Any:
        """Copies to memory of XLA's, and keeps `view` until the transfer stream has done so."""
        with self._lock:
            if self._jax:
                # of a copy, since JAX would refer to the view itself until somebody calls it again
                result = jaxio.jax().device_put(view.copy(), jaxio.jax().local_devices()[self._index])
                result.block_until_ready()
                self._add(self.transfers, "copy to XLA", _hold(view), source=view.ctypes.data)
                if self._automatic:
                    self.run()
                return result
            target = np.empty_like(view)
            ready = FakeEvent()

            def run() -> None:
                target[...] = view

            self._add(self.transfers, "copy to XLA", run, source=view.ctypes.data)
            self.record(ready, self.transfers)
            if self._automatic:
                self.run()
            return FakeArray(target, ready)

    def _add(
        self,
        stream: FakeStream,
        what: str,
        run: Callable[[], None],
        ready: Callable[[], bool] = lambda: True,
        source: int = -1,
    ) -> None:
        stream.operations.append(_Operation(what, run, ready, source))


class _Ordered:
    """An exporter as the CPU's JAX asks it, which has no stream to name."""

    def __init__(self, exporter: Any, stream: FakeStream) -> None:
        self._exporter, self._stream = exporter, stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._exporter.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        return self._exporter.__dlpack__(stream=self._stream)


def _hold(view: npt.NDArray[Any]) -> Callable[[], None]:
    """An operation that does nothing but refer to `view` until it is done."""

    def run(view: npt.NDArray[Any] = view) -> None: ...

    return run


def _move(destination: int, source: int, nbytes: int) -> None:
    ctypes.memmove(destination, source, nbytes)
