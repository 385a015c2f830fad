"""Several devices with memory of their own, each with its part of each batch.

Every device has its own ring, with its own stream and its own fences (`ring.py` says why these are needed), in which a
slot is as large as the device's parts are. What the engine knows as one slot is the host's slot and one of each ring:
it has been copied when all devices have copied their parts, it is released when nothing refers to a part on any device,
and it is retired on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place.device import Convert, Device, Event
from hydrax_gpu._place.regions import DeviceLayout, Region
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.setup import ring_memory
from hydrax_gpu._place.shards import BatchShards
from hydrax_gpu._place.targets import Part
from hydrax_gpu._spec import ALIGNMENT, Layout

__all__ = ["DeviceRings", "ShardLayout"]


@dataclass(frozen=True, slots=True)
class _Part:
    offset: int  # in the slot of the device
    source: int  # in the host's
    nbytes: int
    rows: int
    begin: int  # the first of them, in the host's slot


@dataclass(frozen=True, slots=True)
class ShardLayout(DeviceLayout):
    """The memory of what one device has of a batch: as `DeviceLayout`, but each array has its own rows and source."""

    parts: tuple[_Part, ...] = ()

    @staticmethod
    def of(
        layout: Layout,
        shards: BatchShards,
        jax_device: Any,
        dtypes: Mapping[str, np.dtype[Any]],
        names: Collection[str],
        converts: Callable[[np.dtype[Any], np.dtype[Any]], bool],
    ) -> ShardLayout:
        """Lays the parts of `jax_device` out, of those arrays in `names` that it has a part of.

        Args:
            layout: of the host's slots, which hold the rows of this process.
            shards: of a batch.
            jax_device: the `jax.Device`.
            dtypes: what each array is to have in the batch.
            names: of arrays whose parts are contiguous.
            converts: whether a kernel can convert from the first to the second.
        """
        regions: list[Region] = []
        parts: list[_Part] = []
        end = 0
        for array in layout.arrays:
            pieces = [piece for piece in shards.arrays[array.name].pieces if piece.device == jax_device]
            if not pieces or array.name not in names:
                continue
            (piece,) = pieces
            rows, wanted = piece.end - piece.begin, dtypes[array.name]
            part = _Part(end, array.offset + piece.begin * array.row_nbytes, rows * array.row_nbytes, rows, piece.begin)
            end = _aligned(end + part.nbytes)
            offset, how = part.offset, "as it is"
            if wanted != array.numpy_dtype:
                how = "kernel" if converts(array.numpy_dtype, wanted) else "xla"
            if how == "kernel":
                offset = end
                end = _aligned(end + part.nbytes // array.numpy_dtype.itemsize * wanted.itemsize)
            held = array.numpy_dtype if how == "xla" else wanted
            regions.append(Region(array.name, array.item_shape, part.offset, array.numpy_dtype, offset, held, how))
            parts.append(part)
        return ShardLayout(layout.rows, tuple(regions), end, (), None, tuple(parts))

    def copies(self, rows: int, there: Collection[str] = ()) -> list[tuple[int, int]]:
        """`(offset, bytes)` of each array that is not `there` already."""
        return [
            (part.offset, part.nbytes)
            for region, part in zip(self.regions, self.parts, strict=True)
            if region.name not in there
        ]

    @property
    def rows_of(self) -> dict[str, Part]:
        """The rows of each array that the device has."""
        return {
            region.name: Part(part.begin, part.begin + part.rows, part.offset, part.nbytes // part.rows)
            for region, part in zip(self.regions, self.parts, strict=True)
        }

    def source(self, offset: int) -> int:
        """Where the host's slot has what is copied to an offset."""
        return next(part.source for part in self.parts if part.offset == offset)

    def converts(self, address: int, rows: int) -> list[Convert]:
        """What kernels are to do in a slot that begins at `address`."""
        return [
            Convert(address + r.source, r.source_dtype, address + r.offset, r.dtype, part.rows * r.item_size)
            for r, part in zip(self.regions, self.parts, strict=True)
            if r.how == "kernel"
        ]

    def views(self, memory: Any, rows: int) -> dict[str, npt.NDArray[Any]]:
        """What JAX is to be given."""
        return {
            r.name: np.ndarray((part.rows, *r.item_shape), r.dtype, buffer=memory, offset=r.offset)
            for r, part in zip(self.regions, self.parts, strict=True)
        }


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


@final
class DeviceRings:
    """A ring for each device that has a part of anything. Called by one thread at a time, as a ring is.

    Args:
        devices: by their `jax.Device`.
        arena: the host's slots.
        layouts: for each kind of batch what each device has of it; `place` names one by its index.

    Raises:
        NotEnoughMemory: a device has no room for the slots.
    """

    def __init__(
        self, devices: Mapping[Any, Device], arena: Arena, layouts: Sequence[Mapping[Any, ShardLayout]]
    ) -> None:
        self._rings: dict[Any, Ring] = {}
        self._layouts = layouts
        self._out: dict[int, list[Ring]] = {}
        self._copying: dict[tuple[int, int], int] = {}
        self.notes: list[str] = []
        for jax_device, device in devices.items():
            mine = [each[jax_device] for each in layouts]
            if any(layout.regions for layout in mine):
                memory, note = ring_memory(device, arena.shape.depth, mine)
                self._rings[jax_device] = Ring(device, memory, arena, mine)
                self.notes += [note] if note else []

    @property
    def rings(self) -> Mapping[Any, Ring]:
        """The rings, by `jax.Device`."""
        return self._rings

    def layouts(self, index: int) -> Mapping[Any, ShardLayout]:
        """What each device has of a kind of batch."""
        return self._layouts[index]

    @property
    def nbytes(self) -> int:
        """Memory of all devices together."""
        return sum(ring.memory.nbytes for ring in self._rings.values())

    def place(
        self,
        slot: int,
        generation: int,
        index: int,
        on_release: Callable[[], None],
        files: Callable[[Any], Event] | None = None,
        there: Collection[str] = (),
    ) -> dict[str, dict[Any, Any]]:
        """The parts of a full slot: for each array by device.

        Args:
            slot: the slot.
            generation: its generation.
            index: of its layout.
            on_release: called when nothing refers to any of them.
            files: what marks, by `jax.Device`, that the arrays in `there` are on the device already, None for none.
            there: their names.
        """
        involved = {device: ring for device, ring in self._rings.items() if self._layouts[index][device].regions}
        for device, ring in involved.items():
            event = None if files is None else files(device)
            ring.fill(slot, generation, index, self._layouts[index][device].rows, event, there)
        self._copying[slot, generation] = len(involved)
        self._out[slot] = list(involved.values())
        released = _LastOf(len(involved), on_release)
        parts: dict[str, dict[Any, Any]] = {}
        for device, ring in involved.items():
            layout = self._layouts[index][device]
            for name, array in ring.export(slot, index, layout.rows, released).items():
                parts.setdefault(name, {})[device] = array
        return parts

    def copied(self) -> list[tuple[int, int]]:
        """Slots, and generations, that all devices have copied now."""
        done: list[tuple[int, int]] = []
        for ring in self._rings.values():
            for pair in ring.copied():
                self._copying[pair] -= 1
                if not self._copying[pair]:
                    del self._copying[pair]
                    done.append(pair)
        return done

    def retire(self, slot: int) -> None:
        """Puts up a fence on each device before what it has of a slot."""
        for ring in self._out.pop(slot):
            ring.retire(slot)

    def close(self) -> None:
        """Waits until no device reads host memory. Idempotent."""
        for ring in self._rings.values():
            ring.close()


@final
class _LastOf:
    """Calls a function when it has been called for the last of `count` times.

    From any thread, in a deleter or within the garbage collector: so it takes no lock. Taking from a list is one step.
    """

    __slots__ = ("_left", "_then")

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left = [None] * (count - 1)
        self._then = then

    def __call__(self) -> None:
        try:
            self._left.pop()
        except IndexError:
            self._then()
