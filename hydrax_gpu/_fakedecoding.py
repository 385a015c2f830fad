"""What decodes on a `FakeDevice`: the decoders of the CPU, whose results come when it is the stream's turn."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._decode.chain import DECODERS, Chain
from hydrax_gpu._decode.contract import Damaged
from hydrax_gpu._kernels.resize_crop_flip_normalize import EIGHTHS, Box
from hydrax_gpu._mem.graphs import FieldArrays, OpenGraph, Output
from hydrax_gpu._place.device import GraphOutcome, Picture

if TYPE_CHECKING:
    from hydrax_gpu.testing import FakeDevice, FakeStream

__all__ = ["FakeGraph", "FakeImageDecoder", "window"]


def window(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Memory at an address, as an array."""
    size = max(1, math.prod(shape) * dtype.itemsize)
    memory: Any = (ctypes.c_ubyte * size).from_address(address)
    return np.ndarray(shape, dtype, buffer=memory)


@final
class FakeImageDecoder:
    """Decodes JPEG files to RGB (3 channels) or gray (1), by the host library at `path` or without one."""

    def __init__(self, device: FakeDevice, channels: int, path: str | None) -> None:
        self._device, self._channels = device, channels
        self._chain = Chain(DECODERS, path, (0, 0, 0), srgb=False, gray=channels == 1, count=lambda line: None)

    def __call__(self, stream: FakeStream, pictures: Sequence[Picture]) -> list[str | None]:
        """See `_place.device.ImageDecoder`."""
        self._device.before_decoding()
        return [self._one(stream, picture) for picture in pictures]

    def _one(self, stream: FakeStream, picture: Picture) -> str | None:
        device, chain = self._device, self._chain
        data = window(picture.data, (picture.nbytes,), np.dtype(np.uint8)).copy()
        if (reason := device.refuses(data.tobytes())) is not None:
            return reason
        box = Box(EIGHTHS * picture.x, EIGHTHS * picture.y, EIGHTHS * picture.width, EIGHTHS * picture.height)
        try:
            opened = chain.open(data)
            opened.orientation = 1  # the kernel turns it
            part = chain.decode(opened, box, picture.height, picture.width)
        except Damaged as error:
            return str(error)
        x, y = part.box.x // EIGHTHS, part.box.y // EIGHTHS
        pixels = part.pixels[y : y + picture.height, x : x + picture.width, : self._channels].copy()
        device.pictures.append(picture)

        def run() -> None:
            window(picture.destination, pixels.shape, pixels.dtype)[...] = pixels

        device.enqueue(stream, "decode a picture", run)
        return None


@final
class FakeGraph:
    """A graph that runs on the CPU and has its outputs in memory of the device's, which it soon uses again.

    Single numbers stay in the host's memory, as what a graph does not compute on a device does.
    """

    def __init__(self, device: FakeDevice, graph: OpenGraph) -> None:
        self._device, self._graph = device, graph
        self._blocks: list[npt.NDArray[np.uint8]] = []  # never given back, since what reads too late is to find them

    @property
    def names(self) -> tuple[str, ...]:
        """See `_place.device.Graph`, as for all that follow."""
        return self._graph.names

    def run(
        self,
        stream: FakeStream,
        rows: Sequence[int],
        fields: Mapping[int, FieldArrays],
        seeds: Mapping[int, int] | None,
    ) -> Iterator[GraphOutcome]:
        """Runs it at once; the outputs come when it is the stream's turn."""
        device = self._device
        device.before_decoding()
        good: list[int] = []
        for row in rows:
            reasons = [device.refuses(array.tobytes()) for array in fields[row].values() if array.ndim]
            reason = next((each for each in reasons if each is not None), None)
            if reason is None:
                good.append(row)
            else:
                yield [row], reason, None
        for some, outputs, keep in self._graph.run(good, fields, seeds, None) if good else ():
            if isinstance(outputs, str):
                yield some, outputs, None
                continue
            device.graph_rows += len(some)
            lease = _Lease()
            moved = {
                name: [self._moved(stream, each, keep, lease) for each in found] for name, found in outputs.items()
            }
            yield some, moved, (lease, keep)

    def _moved(self, stream: FakeStream, output: Output, keep: Any, lease: _Lease) -> Output:
        if not output.shape:
            return output
        values = window(output.address, output.shape, output.dtype).copy()
        block = np.full(max(1, values.nbytes), 0xEE, np.uint8)
        self._blocks.append(block)
        weakref.finalize(lease, block.fill, 0xDD).atexit = False
        alive = weakref.ref(lease)

        def run() -> None:
            if alive() is not None:
                block[: values.nbytes] = values.reshape(-1).view(np.uint8)

        self._device.enqueue(stream, "run a graph", run)
        return output._replace(address=block.ctypes.data, on_device=True)


class _Lease:
    """While it is referred to, the outputs of a run are not overwritten."""
