"""What placement asks of a device: the one protocol behind which CUDA and the fake of the tests stand.

It is small on purpose. Streams and events are those of CUDA: a stream does its work in order, an event marks a place in
it, a stream that waits for an event does so by itself while the host goes on. Nothing here blocks the host but
`synchronize`, which is for the end.

Addresses are plain integers, sizes are bytes.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from hydrax_gpu._kernels.resize_crop_flip_normalize import Args
from hydrax_gpu._mem.encoded import PictureRows
from hydrax_gpu._mem.graphs import FieldArrays, GraphRows, Output
from hydrax_gpu._spec import Layout

__all__ = [
    "Convert", "Decoder", "Device", "DeviceMemory", "Event", "Graph", "GraphOutcome", "ImageDecoder", "Owner",
    "Picture", "Resizer", "Stream",
]  # fmt: skip

Stream: TypeAlias = Any
Event: TypeAlias = Any
"""Opaque: what `new_stream` and `new_event` of the same device have returned."""

Owner: TypeAlias = Literal["device", "xla"]

Arrays: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"

Decoder: TypeAlias = "Callable[[Stream, Arrays, Arrays], None]"
"""`(stream, arrays as they were loaded, arrays of the batch)`, in device memory; fills the latter, when it is the
stream's turn."""


Resizer: TypeAlias = "Callable[[Stream, Args], None]"
"""`(stream, arguments)`: launches `resize_crop_flip_normalize` on items, pictures, table and output that lie in device
memory, when it is the stream's turn. It fills in `channels`, `affine`, `scale` and `bias`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A part of a JPEG picture that is to be decoded.

    Attributes:
        data: address of the file, in host memory.
        nbytes: its size.
        x: of the part's first column, in pixels of the stored picture, whatever its EXIF orientation says.
        y: of its first row.
        width: its columns.
        height: its rows.
        destination: address in device memory where the pixels go: uint8, `(height, width, channels)`, without gaps.
    """

    data: int
    nbytes: int
    x: int
    y: int
    width: int
    height: int
    destination: int


class ImageDecoder(Protocol):
    """Decodes JPEG files on a device. Called by one thread at a time."""

    def __call__(self, stream: Stream, pictures: Sequence[Picture]) -> Sequence[str | None]:
        """Decodes what it can, in the order of the stream, as far as the device is concerned.

        The host may block for as long as its part of the work takes. When this returns, it has read the files.

        Returns:
            For each picture None, or why it was refused: its pixels are whatever they are then.
        """
        ...


GraphOutcome: TypeAlias = "tuple[list[int], Mapping[str, Sequence[Output]] | str, Any]"
"""`(rows, their outputs by array or why the one of them has none, what must live until those have been read)`."""


class Graph(Protocol):
    """A graph of operators that runs on a device. Called by one thread at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all fields of its items."""
        ...

    def run(
        self, stream: Stream, rows: Sequence[int], fields: Mapping[int, FieldArrays], seeds: Mapping[int, int] | None
    ) -> Iterable[GraphOutcome]:
        """Runs it on the fields of some rows. The host may block for as long as its part of the work takes.

        Outputs may be read in the order of the stream, and from the host's memory in its order, too.
        """
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class DeviceMemory:
    """An allocation on a device, given back when nothing refers to this object and to its leases any more.

    Attributes:
        address: of the first byte, a multiple of 256.
        nbytes: size.
        owner: who was asked for it: the device, beside what XLA has reserved, or XLA.
        keep: what must live as long as this.
    """

    address: int
    nbytes: int
    owner: Owner
    keep: Any = None

    def lease(self, offset: int, nbytes: int, on_release: Callable[[], None]) -> Any:
        """A window for NumPy arrays of which only shape, dtype and address are ever looked at, as of `Arena.lease`.

        `on_release()` is called when the last array over it is gone, and the last `jax.Array` made of one: on whichever
        thread lets go, possibly inside the garbage collector.
        """
        lease = (ctypes.c_ubyte * nbytes).from_address(self.address + offset)
        vars(lease)["memory"] = self
        weakref.finalize(lease, on_release).atexit = False
        return lease


@dataclass(frozen=True, slots=True)
class Convert:
    """A conversion of `count` elements from one dtype to another, as `numpy.ndarray.astype` does it."""

    source: int
    source_dtype: np.dtype[Any]
    destination: int
    destination_dtype: np.dtype[Any]
    count: int


class Device(Protocol):
    """One device that JAX computes on and that has memory of its own."""

    @property
    def name(self) -> str:
        """Its name, for people."""
        ...

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """`(DLDeviceType, index)` of its memory."""
        ...

    # Memory.

    def free_memory(self) -> tuple[int, int]:
        """Free bytes outside of what XLA has reserved, and all bytes."""
        ...

    def allocate(self, nbytes: int, owner: Owner) -> DeviceMemory:
        """Takes memory.

        Raises:
            MemoryError: there is not that much.
        """
        ...

    def pin(self, address: int, nbytes: int) -> None:
        """Registers host memory, so that it is read without the processor's help.

        Raises:
            OSError: the driver or the kernel refuses; the message says why.
        """
        ...

    def unpin(self, address: int) -> None:
        """Takes the registration back. No copy from there may be under way."""
        ...

    # Streams.

    def new_stream(self) -> Stream:
        """A stream that is ordered with no other."""
        ...

    def new_event(self) -> Event:
        """An event that was never recorded, for which nobody waits."""
        ...

    def record(self, event: Event, stream: Stream) -> None:
        """Lets `event` mark what the stream was given so far. An event can be recorded again."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Makes what the stream is given from now on wait for the place that `event` marks now."""
        ...

    def done(self, event: Event) -> bool:
        """Whether what the event marks is done."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Blocks the host until the stream has done what it was given, without the GIL."""
        ...

    # Work.

    def copy_in(self, stream: Stream, destination: int, source: int, nbytes: int) -> None:
        """Copies from host memory to device memory, when it is the stream's turn."""
        ...

    def copy(self, stream: Stream, destination: int, source: int, nbytes: int) -> None:
        """Copies within device memory, when it is the stream's turn."""
        ...

    def converts(self, source: np.dtype[Any], destination: np.dtype[Any]) -> bool:
        """Whether `convert` can do this with the very values that `astype` has."""
        ...

    def convert(self, stream: Stream, work: Convert) -> None:
        """Converts within device memory, when it is the stream's turn."""
        ...

    def decoder(self, layout: Layout) -> Decoder:
        """What decodes the declared arrays of a layout, one that is `decoding.decodable`."""
        ...

    def image_decoder(self, channels: int) -> ImageDecoder:
        """What decodes JPEG files to RGB (3 channels) or gray (1).

        Raises:
            ImportError: what it needs is not installed; the message says how to get it.
        """
        ...

    def resizer(self, rows: PictureRows) -> Resizer:
        """The kernel that makes such rows of decoded pictures."""
        ...

    def graph(self, rows: GraphRows, training: bool) -> Graph:
        """What makes such rows of the fields of items, for training or for validation.

        Raises:
            Exception: it cannot be built for this device; the message says why.
        """
        ...

    # XLA.

    def fence(self, stream: Stream) -> None:
        """Makes the stream wait for everything that XLA's compute stream of this device was given so far."""
        ...

    def order_reader(self, reader: Any, event: Event) -> None:
        """Makes the stream that JAX names in `__dlpack__(stream=)` wait for an event."""
        ...

    def to_jax(self, exporter: Any) -> Any:
        """A `jax.Array` on the memory of an object with `__dlpack__` and `__dlpack_device__`, without a copy."""
        ...

    def copy_to_jax(self, view: np.ndarray[Any, Any]) -> Any:
        """A `jax.Array` in memory of XLA's with the content of `view`, which lies in pinned host memory.

        The copy may go on after the return: `view` is alive until it is done.
        """
        ...
